"""The supervisor with its own threads: it starts, works, and stops at once."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.pools import Pool
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.site import Site
from tests.unit.slurm.waiting import wait_until


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, event_seconds=0.01, poll_seconds=0.05, log_interval_seconds=0.02)
    site.clock = site.cluster.clock = SystemClock()
    site.restart()
    site.supervisor.start([])
    yield site
    site.supervisor.stop()


def run(site, names):
    def all_ended():
        site.cluster.step()
        return all((site.root.ended / name).exists() for name in names)

    wait_until(all_ended, site.describe)


def test_many_jobs_at_once_all_end_well(site):
    names = [f"t{number}" for number in range(30)]
    for name in names:
        site.task(name)
    run(site, names)
    assert {site.shown(name).status for name in names} == {JobStatus.SUCCESS}
    assert len(site.calls("submit")) == 30


def test_a_job_without_an_end_does_not_hold_a_stop_back(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    wait_until(lambda: site.cluster.step() or site.state().started is not None, site.describe)
    begun = monotonic()
    site.supervisor.stop()
    assert monotonic() - begun < 2
    assert site.state().verdict is None


def test_the_number_of_threads_does_not_grow_with_the_jobs(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task("first")
    wait_until(lambda: site.cluster.step() or site.state("first").started is not None, site.describe)
    before = set(threading.enumerate())
    for number in range(40):
        site.task(f"t{number}")
    wait_until(lambda: site.cluster.step() or len(site.calls("submit")) == 41, site.describe)
    new = {thread.name for thread in threading.enumerate() if thread not in before}
    assert not new


def test_a_listing_without_any_of_many_jobs_starts_no_thread_for_them(tmp_path):
    site = Site(tmp_path)
    site.cluster.default_program = FakeProgram(is_endless=True)
    names = [f"t{number}" for number in range(30)]
    for name in names:
        site.task(name)
    site.run_until(lambda: all(site.state(name).started is not None for name in names))
    site.cluster.jobs.clear()
    before = set(threading.enumerate())
    site.run_until(lambda: all(site.supervisor._jobs[name].missing for name in names))
    new = {thread.name for thread in threading.enumerate() if thread not in before}
    assert not new
    site.run_to_the_end()
    assert {site.state(name).verdict.code for name in names} == {"vanished"}


def test_a_pool_does_what_it_is_given_in_order():
    done = []
    finished = threading.Event()
    pool = Pool("test", 1)
    for number in range(50):
        pool.submit(done.append, number)
    pool.submit(finished.set)
    assert finished.wait(5)
    assert done == list(range(50))


def test_a_pool_gives_the_users_their_turns():
    done, began, may_go, finished = [], threading.Event(), threading.Event(), threading.Event()
    pool = Pool("test", 1)
    pool.submit(lambda: (began.set(), may_go.wait(5)))
    assert began.wait(5)
    for number in range(1000):
        pool.submit(done.append, ("a", number), user="a")
    pool.submit(done.append, ("b", 0), user="b")
    pool.submit(finished.set, user="a")
    may_go.set()
    assert finished.wait(5)
    assert done.index(("b", 0)) == 1
    assert [number for user, number in done if user == "a"] == list(range(1000))


def test_messages_that_cannot_be_run_do_not_take_the_threads_that_end_jobs(tmp_path):
    """Each waited five minutes in one of the six threads for a Girder that was away."""
    site = Site(tmp_path)
    site.supervisor._pools = {}
    site.supervisor.start([])
    try:
        may_go, begun = threading.Event(), []
        for _ in range(20):
            site.supervisor.run_in_pool("unhandled", lambda: (begun.append(1), may_go.wait(10)))
        done = threading.Event()
        site.supervisor.run_in_pool("girder", done.set)
        assert done.wait(5)
        assert len(begun) <= 2
    finally:
        may_go.set()
        site.supervisor.stop()
