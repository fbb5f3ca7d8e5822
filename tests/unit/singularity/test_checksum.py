"""SIFs whose contents are no longer what was made."""

from __future__ import annotations

import json
import os

import pytest

from girder_worker_singularity.errors import SifDamaged
from girder_worker_singularity.sif import checksum
from girder_worker_singularity.sif.note import note_path


def flip(path, *, at=-1, later=0.0):
    """One byte of the file is another, as if somebody had written there at that many seconds after it was made."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END)
        byte = file.read(1)
        file.seek(at, os.SEEK_END)
        file.write(bytes([byte[0] ^ 255]))
    os.utime(path, (before.st_mtime + later, before.st_mtime + later))


def test_a_sif_whose_contents_were_written_to_is_damaged_and_made_anew(world):
    made = world.store().ensure("team/tool:1")
    flip(made.path, later=60)
    with pytest.raises(SifDamaged, match="changed since it was made"):
        world.store().find("team/tool:1")
    assert world.store().find_for("team/tool:1", "if-not-present") is None
    assert world.store().ensure("team/tool:1").converted
    assert world.store().find("team/tool:1") is not None


def test_a_sif_that_only_got_another_time_is_read_once_and_used(world, monkeypatch):
    store = world.store()
    made = store.ensure("team/tool:1")
    os.utime(made.path, (1e9, 1e9))
    read = []
    original = checksum.sha256_of
    monkeypatch.setattr(checksum, "sha256_of", lambda path: read.append(path) or original(path))
    for _ in range(3):
        assert not store.ensure("team/tool:1").converted
    assert read == [made.path]


def test_contents_are_not_read_where_nobody_wrote(world, monkeypatch):
    world.store().ensure("team/tool:1")
    monkeypatch.setattr(checksum, "sha256_of", pytest.fail)
    assert world.store().find("team/tool:1") is not None


def test_a_disk_that_changes_contents_by_itself_is_found_by_reading_them(world):
    made = world.store().ensure("team/tool:1")
    assert checksum.contents_problem(made.path) == ""
    flip(made.path)
    assert "changed" in checksum.contents_problem(made.path)


def test_a_note_of_before_there_were_checksums_is_enough(world):
    made = world.store().ensure("team/tool:1")
    note = note_path(made.path)
    values = json.loads(note.read_text())
    del values["sha256"], values["modified"]
    note.write_text(json.dumps(values))
    os.utime(made.path, (1e9, 1e9))
    assert not world.store().ensure("team/tool:1").converted
    assert checksum.contents_problem(made.path) == ""
