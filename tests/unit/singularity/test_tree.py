from __future__ import annotations

from girder_worker_singularity.tree import remove_tree


def test_closed_directories_go_too(tmp_path):
    top = tmp_path / "top"
    deep = top / "closed" / "deep"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    for directory in (deep, deep.parent, top):
        directory.chmod(0)
    remove_tree(top)
    assert list(tmp_path.iterdir()) == []


def test_where_a_link_leads_nothing_changes(tmp_path):
    other = tmp_path / "other"
    other.mkdir(mode=0o500)
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(other)
    remove_tree(tmp_path / "top")
    assert list(tmp_path.iterdir()) == [other]
    assert other.stat().st_mode & 0o777 == 0o500


def test_nothing_is_removed_where_nothing_is(tmp_path):
    remove_tree(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
