from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.holder import Holder
from girder_worker_singularity.lease import (
    HardLinksMissing,
    Lease,
    LeaseHeld,
    LeaseLost,
    LeaseWatch,
    Standing,
)
from girder_worker_singularity.testing import FakeClock

ME = Holder.this_process("test")
ELSEWHERE = replace(ME, host="another-host", boot_id="another-boot")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lease"


@pytest.fixture
def clock():
    return FakeClock()


def acquire(path, clock, holder=ME, **options):
    return Lease.acquire(path, holder, clock, wait_seconds=0, **options)


def gone_process() -> Holder:
    process = subprocess.Popen(["sleep", "30"])
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    holder = replace(ME, pid=process.pid, process_start=int(fields[19]))
    assert not holder.is_gone()
    process.kill()
    process.wait()
    return holder


def watch_for(path, clock, seconds, refresh=None):
    watch = LeaseWatch(path, clock)
    watch.look()
    standing = None
    for _ in range(int(seconds)):
        clock.advance(1)
        if refresh is not None:
            refresh()
        standing = watch.look()
    return standing


def test_a_free_lease_is_taken_and_given_back(path, clock):
    with acquire(path, clock) as lease:
        assert LeaseWatch(path, clock).look() is Standing.HELD
        lease.check()
    assert LeaseWatch(path, clock).look() is Standing.FREE
    assert list(path.parent.iterdir()) == []


def test_a_held_lease_names_its_holder(path, clock):
    with acquire(path, clock), pytest.raises(LeaseHeld, match=str(os.getpid())):
        acquire(path, clock)


def test_whoever_waits_gets_it_when_it_is_given_back(path):
    clock = SystemClock()
    lease = Lease.acquire(path, ME, clock)
    threading.Timer(0.3, lease.release).start()
    Lease.acquire(path, ME, clock, wait_seconds=20).release()


def test_waiting_ends_when_it_is_told_to(path, clock):
    with acquire(path, clock), pytest.raises(LeaseHeld):
        Lease.acquire(path, ME, clock, should_stop=lambda: True)


def test_a_lease_of_a_process_that_is_gone_is_taken_at_once(path, clock):
    acquire(path, clock, gone_process())
    acquire(path, clock).release()
    assert clock.slept == []
    assert list(path.parent.iterdir()) == []


def test_a_number_that_a_new_process_got_does_not_keep_a_lease(path, clock):
    acquire(path, clock, replace(ME, process_start=ME.process_start - 1))
    acquire(path, clock)


def test_a_process_of_another_host_is_not_judged_by_its_number(path, clock):
    acquire(path, clock, replace(ELSEWHERE, pid=2**22 - 1))
    with pytest.raises(LeaseHeld):
        acquire(path, clock)


def test_a_process_of_another_pid_namespace_is_not_judged_by_its_number(path, clock):
    acquire(path, clock, replace(ME, pid_namespace="pid:[1]", pid=2**22 - 1))
    with pytest.raises(LeaseHeld):
        acquire(path, clock)


def test_a_lease_that_stands_still_for_a_minute_is_stale(path, clock):
    acquire(path, clock, ELSEWHERE)
    assert watch_for(path, clock, 59) is Standing.HELD
    assert watch_for(path, clock, 61) is Standing.STALE


class ClockWithOthers(FakeClock):
    """While somebody sleeps by this clock, others do something."""

    def __init__(self, others) -> None:
        super().__init__()
        self.others = others

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.others()


def test_one_that_may_be_dead_is_waited_for_and_no_longer_than_needed(path, clock):
    acquire(path, clock, ELSEWHERE)
    told = []
    lease = Lease.acquire(path, ME, clock, wait_seconds=120, unless_it_lives=True, on_wait=told.append)
    lease.check()
    assert told == [f"test {ELSEWHERE.pid} on another-host"]
    assert 60 <= sum(clock.slept) <= 61


def test_one_that_counts_on_is_not_waited_for(path, clock):
    clock = ClockWithOthers(acquire(path, clock, ELSEWHERE).refresh)
    with pytest.raises(LeaseHeld):
        Lease.acquire(path, ME, clock, wait_seconds=120, unless_it_lives=True)
    assert sum(clock.slept) <= 1


def test_one_that_is_seen_to_live_is_not_waited_for_at_all(path, clock):
    with acquire(path, clock), pytest.raises(LeaseHeld):
        Lease.acquire(path, ME, clock, wait_seconds=120, unless_it_lives=True)
    assert clock.slept == []


def test_a_lease_that_is_refreshed_never_is(path, clock):
    lease = acquire(path, clock, ELSEWHERE)
    assert watch_for(path, clock, 600, refresh=lease.refresh) is Standing.HELD


def test_a_lease_whose_time_moves_is_alive_though_its_content_seems_to_stand_still(path, clock):
    """As on a network mount that shows the content it once read."""
    acquire(path, clock, ELSEWHERE)
    times = iter(range(1000))
    assert watch_for(path, clock, 600, refresh=lambda: os.utime(path, (0, next(times)))) is Standing.HELD


def test_an_observer_that_was_itself_asleep_has_seen_nothing(path, clock):
    acquire(path, clock, ELSEWHERE)
    watch = LeaseWatch(path, clock)
    watch.look()
    clock.advance(3600)
    assert watch.look() is Standing.HELD


def test_a_broken_lease_is_noticed_by_its_old_holder(path, clock):
    old = acquire(path, clock, ELSEWHERE)
    new = Lease.acquire(path, ME, clock, wait_seconds=100)
    with pytest.raises(LeaseLost):
        old.check()
    with pytest.raises(LeaseLost):
        old.refresh()
    new.check()


def test_an_old_holder_cannot_harm_the_new_one(path, clock):
    old = acquire(path, clock, ELSEWHERE)
    new = Lease.acquire(path, ME, clock, wait_seconds=100)
    old.release()
    new.check()
    new.release()
    with pytest.raises(LeaseLost):
        old.check()
    assert list(path.parent.iterdir()) == []


def test_a_lease_that_came_back_to_life_is_not_broken(path, clock):
    lease = acquire(path, clock, ELSEWHERE)
    watch = LeaseWatch(path, clock)
    watch.look()
    for _ in range(13):
        clock.advance(5)
        watch.look()
    lease.refresh()
    assert not watch.break_stale()
    lease.check()


def test_a_lease_renamed_away_by_mistake_is_put_back_by_its_holder(path, clock):
    lease = acquire(path, clock)
    path.rename(path.with_name("elsewhere"))
    lease.check()
    assert path.exists()


def test_a_lease_that_is_no_json_is_stale_after_a_minute(path, clock):
    path.write_bytes(b"\xff\xfe")
    assert watch_for(path, clock, 30) is Standing.HELD
    Lease.acquire(path, ME, clock, wait_seconds=100).check()


def test_a_refresh_keeps_the_length_of_the_file(path, clock):
    lease = acquire(path, clock)
    size = path.stat().st_size
    for _ in range(12):
        lease.refresh()
    assert path.stat().st_size == size
    assert b'"counter": "000000000012"' in path.read_bytes()


def test_inside_kept_alive_the_counter_moves_by_itself(path):
    lease = Lease.acquire(path, ME, SystemClock())
    before = path.read_bytes()
    with lease.kept_alive(every_seconds=0.01):
        for _ in range(500):
            if path.read_bytes() != before:
                break
            threading.Event().wait(0.01)
    assert path.read_bytes() != before
    lease.release()


@pytest.mark.parametrize("round_", range(2))
def test_of_many_threads_that_find_a_stale_lease_one_at_a_time_holds_it_and_none_loses_it(path, round_):
    acquire(path, FakeClock(), gone_process())
    inside, together, errors = set(), [], []
    lock = threading.Lock()

    def work() -> None:
        try:
            lease = Lease.acquire(path, ME, SystemClock(), wait_seconds=60)
            with lock:
                inside.add(lease)
                together.append(len(inside))
            lease.refresh()
            lease.check()
            with lock:
                inside.remove(lease)
            lease.release()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert together == [1] * 8
    assert list(path.parent.iterdir()) == []


class RacyPath(type(Path())):
    """A path at which something happens between two steps of whoever removes a lease: before the renaming, or after it."""

    def rename(self, target):
        if before:
            before.pop()()
        renamed = super().rename(target)
        if after:
            after.pop()()
        return renamed


before, after = [], []


def stale_watch(path, clock, holder=None):
    acquire(path, clock, holder or gone_process())
    watch = LeaseWatch(RacyPath(path), clock)
    assert watch.look() is Standing.STALE
    return watch


def test_one_who_comes_late_to_break_a_lease_leaves_the_next_one_alone(path, clock):
    watch = stale_watch(path, clock)
    taken = []
    before.append(lambda: taken.append(acquire(path, clock)))
    assert not watch.break_stale()
    taken[0].check()
    taken[0].release()
    assert list(path.parent.iterdir()) == []


def test_nobody_takes_a_lease_that_is_being_removed(path, clock):
    watch = stale_watch(path, clock)

    def others() -> None:
        for _ in range(5):
            with pytest.raises(LeaseHeld):
                acquire(path, clock)

    after.append(others)
    assert watch.break_stale()
    assert list(path.parent.iterdir()) == []


class Died(BaseException):
    """kill -9 at this very place."""


def die():
    raise Died


def test_what_one_who_died_while_he_removed_a_lease_has_left_is_removed_by_others(path, clock):
    for _ in range(2):  # the second one dies at the work of the first
        after.append(die)
        watch = LeaseWatch(RacyPath(path), clock)
        path.exists() or acquire(path, clock, gone_process())
        with pytest.raises(Died):  # noqa: PT012
            for _ in range(30):
                clock.advance(1)
                watch.try_acquire(ME)
    with pytest.raises(LeaseHeld):
        Lease.acquire(path, ME, clock, wait_seconds=5)
    Lease.acquire(path, ME, clock, wait_seconds=15).release()
    assert list(path.parent.iterdir()) == []


def test_one_who_dies_while_he_gives_a_lease_back_does_not_keep_it(path, clock):
    lease = acquire(RacyPath(path), clock, replace(ME, process_start=ME.process_start - 1))
    after.append(die)
    with pytest.raises(Died):
        lease.release()
    Lease.acquire(path, ME, clock, wait_seconds=15).release()
    assert list(path.parent.iterdir()) == []


def test_a_holder_that_counts_on_at_the_last_moment_keeps_its_lease(path, clock):
    lease = acquire(path, clock, ELSEWHERE)
    assert watch_for(path, clock, 61) is Standing.STALE
    watch = LeaseWatch(RacyPath(path), clock)
    for _ in range(62):
        watch.look()
        clock.advance(1)
    before.append(lease.refresh)
    assert not watch.break_stale()
    lease.check()
    lease.release()
    assert list(path.parent.iterdir()) == []


def test_a_lease_of_which_only_the_name_is_left_is_removed(path, clock):
    acquire(path, clock, gone_process())
    for own in path.parent.glob(".lease.holder-*"):
        own.unlink()
    with pytest.raises(LeaseHeld):
        Lease.acquire(path, ME, clock, wait_seconds=5)
    Lease.acquire(path, ME, clock, wait_seconds=15).release()
    assert list(path.parent.iterdir()) == []


def test_a_lease_that_somebody_else_just_broke_is_not_broken_again(path, clock):
    watch = stale_watch(path, clock)
    before.append(path.unlink)
    assert not watch.break_stale()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_an_error_and_not_waited_for(path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(HardLinksMissing, match="no hard links") as seen:
        Lease.acquire(path, ME, SystemClock())
    assert seen.value.filename == str(path.parent)
    assert list(path.parent.iterdir()) == []


def test_a_file_system_that_shows_two_names_as_two_files_is_an_error_and_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(os, "link", shutil.copyfile)
    with pytest.raises(HardLinksMissing):
        Lease.acquire(path, ME, SystemClock())
    assert list(path.parent.iterdir()) == []


def test_a_link_that_was_made_and_reported_as_failed_counts(path, clock, monkeypatch):
    def make_and_fail(source, target):
        link(source, target)
        raise OSError(errno.EIO, "Input/output error")

    link = os.link
    monkeypatch.setattr(os, "link", make_and_fail)
    with acquire(path, clock) as lease:
        lease.check()
    assert list(path.parent.iterdir()) == []
