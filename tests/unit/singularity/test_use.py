"""When a SIF was last used is known, at the cost of one look an hour."""

from __future__ import annotations

import os

import pytest

from girder_worker_singularity.sif.use import STAMP_EVERY_SECONDS, last_used, note_use, stamp_path, take
from girder_worker_singularity.testing import FakeClock


@pytest.fixture
def sif(tmp_path):
    path = tmp_path / "tool.sif"
    path.write_bytes(b"a sif")
    return path


def test_a_use_is_noted(sif):
    clock = FakeClock()
    assert last_used(sif) is None
    assert take(sif, clock)
    assert last_used(sif) == clock.now()


def test_within_an_hour_nothing_is_written_again(sif):
    clock = FakeClock()
    note_use(sif, clock)
    before = stamp_path(sif).stat().st_ctime_ns
    clock.advance(STAMP_EVERY_SECONDS - 1)
    note_use(sif, clock)
    assert stamp_path(sif).stat().st_ctime_ns == before
    clock.advance(1)
    note_use(sif, clock)
    assert last_used(sif) == clock.now()


def test_a_stamp_from_the_future_of_another_hosts_clock_is_corrected(sif):
    clock = FakeClock()
    note_use(sif, clock)
    stamp_path(sif).write_text(f"{clock.now() + 9e6}\n")
    note_use(sif, clock)
    assert last_used(sif) == clock.now()


@pytest.mark.parametrize("content", ["", "nonsense", "nan"])
def test_a_stamp_that_says_nothing_counts_by_its_own_time(sif, content):
    note_use(sif, FakeClock())
    stamp_path(sif).write_text(content)
    os.utime(stamp_path(sif), (5000.0, 5000.0))
    assert last_used(sif) == 5000.0


def test_a_stamp_is_written_over_in_place_and_keeps_its_length(sif):
    clock = FakeClock()
    note_use(sif, clock)
    before = stamp_path(sif).stat()
    clock.advance(1e9)
    note_use(sif, clock)
    after = stamp_path(sif).stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_a_sif_that_was_just_removed_has_to_be_asked_for_again(sif):
    sif.unlink()
    assert not take(sif, FakeClock())


def test_a_store_that_can_only_be_read_is_used_without_a_stamp(sif):
    # A file in the place of the directory of stamps: nothing can be written there, whoever asks.
    (sif.parent / ".used").write_text("")
    assert take(sif, FakeClock())
    assert last_used(sif) is None
