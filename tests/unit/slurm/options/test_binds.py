"""What the site mounts into containers: the lines of the table, and which images get them."""

from __future__ import annotations

import pytest

from girder_worker_singularity.run.mounts import Mount
from girder_worker_slurm.options.binds import (
    NOBODY,
    JobOwner,
    SiteBind,
    asked_groups,
    binds_for,
    outer_first,
    parse_site_bind,
    parse_site_binds,
)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("", SiteBind("/data/atlas", "/data/atlas")),
        ("ro", SiteBind("/data/atlas", "/data/atlas")),
        ("/atlas", SiteBind("/data/atlas", "/atlas")),
        ("/atlas/, rw", SiteBind("/data/atlas", "/atlas", read_only=False)),
        ("/atlas\nimages=team/* other:1", SiteBind("/data/atlas", "/atlas", images=("team/*", "other:1"))),
        ("rw, images = team/*", SiteBind("/data/atlas", "/data/atlas", read_only=False, images=("team/*",))),
    ],
)
def test_a_line_says_where_how_and_for_which_images(text, bind):
    assert parse_site_bind("/data/atlas", text) == bind


@pytest.mark.parametrize(
    ("source", "text", "words"),
    [
        ("data", "/atlas", "`data` is not an absolute path"),
        ("/data/../etc", "/atlas", "not an absolute path"),
        ("/data", "/a/../b", "not an absolute path"),
        ("/data:/etc", "/atlas", "holds ':'"),
        ("/data,ro", "/atlas", "holds ','"),
        ('/da"ta', "/atlas", "holds '\"'"),
        ("/da\\ta", "/atlas", "holds"),
        ("/da\tta", "/atlas", "holds"),
        ("/data", "/", "the whole container|is taken"),
        ("/data", "//", "the whole container|is taken"),
        ("/data", "/mnt", "is taken: /mnt/girder_worker"),
        ("/data", "/mnt/girder_worker", "is taken"),
        ("/data", "/mnt/girder_worker/x", "is taken"),
        ("/data", "/mnt/girder_direct_worker", "is taken"),
        ("/data", "/proc/self", "is taken"),
        ("/dev", "", "is taken"),
        ("/data", "/atlas, mode=rw", "`mode=rw` is not known"),
        ("/data", "/atlas, images=", "`images=` is not known"),
        ("/data", "/atlas, /other", "`/other` is not known"),
    ],
)
def test_what_makes_no_sense_is_named(source, text, words):
    with pytest.raises(ValueError, match=words):
        parse_site_bind(source, text)


def test_the_line_of_a_table_is_named():
    with pytest.raises(ValueError, match="`/b`: `x` is not known"):
        parse_site_binds({"/a": "/x", "/b": "/y, x"})


def test_an_image_gets_what_is_for_all_and_what_is_for_it_and_for_one_place_the_last():
    binds = parse_site_binds(
        {"/licences": "", "/atlas1": "/atlas", "/atlas2": "/atlas, images=team/*", "/other": "images=o/*"}
    )
    of_team = binds_for(binds, ("team/tool:1", "docker.io/team/tool"))
    assert {bind.destination: bind.source for bind in of_team} == {
        "/licences": "/licences",
        "/atlas": "/atlas2",
    }
    assert [bind.source for bind in binds_for(binds, ("x",))] == ["/licences", "/atlas1"]


def test_what_is_for_some_users_is_for_nobody_else():
    group = "0123456789abcdef01234567"
    binds = parse_site_binds(
        {
            "/licences": "",
            "/trial": f"users=ada bob, groups=Pathology {group}, images=team/*",
            "/lab": "groups=Lab",
        }
    )

    def sees(owner, image="team/x"):
        return [bind.source for bind in binds_for(binds, (image,), owner=owner)]

    assert sees(JobOwner("ada")) == ["/licences", "/trial"]
    assert sees(JobOwner("eve", {"f" * 24: "Pathology"})) == ["/licences", "/trial"]
    assert sees(JobOwner("eve", {group: ""})) == ["/licences", "/trial"]
    assert sees(JobOwner("eve", {"f" * 24: group})) == ["/licences"]
    assert sees(JobOwner("eve", {"f" * 24: group.upper()})) == ["/licences"]
    assert sees(JobOwner("eve", {"f" * 24: "Lab"})) == ["/licences", "/lab"]
    assert sees(NOBODY) == ["/licences"]
    assert sees(JobOwner("ada"), "other") == ["/licences"]


def test_users_and_groups_may_be_written_in_upper_or_lower_case_as_in_girder():
    binds = parse_site_binds({"/trial": f"users=Ada, groups=PATHOLOGY {'AB' * 12}"})
    for owner in (JobOwner("ada"), JobOwner("x", {"f" * 24: "Pathology"}), JobOwner("x", {"ab" * 12: "y"})):
        assert binds_for(binds, ("image",), owner=owner) == binds
    assert binds_for(binds, ("image",), owner=JobOwner("x", {"f" * 24: "ab" * 12})) == ()


def test_girder_is_asked_for_groups_only_if_a_line_names_some():
    assert asked_groups(parse_site_binds({"/a": "users=x"})) == (False, False)
    assert asked_groups(parse_site_binds({"/a": f"groups={'0' * 24}"})) == (True, False)
    assert asked_groups(parse_site_binds({"/a": "groups=Lab"})) == (True, True)


def test_no_mount_hides_one_below_it():
    mounts = [Mount("/a", "/data/a/b"), Mount("/b", "/data"), Mount("/c", "/data/c/"), Mount("/d", "/x")]
    assert [mount.source for mount in outer_first(mounts)] == ["/b", "/d", "/c", "/a"]
