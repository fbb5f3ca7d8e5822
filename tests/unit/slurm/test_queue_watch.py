"""The thread that lists Slurm's queue: it outlives what goes wrong, and ends the jobs that nobody carries any more."""

from __future__ import annotations

import errno
import threading

import pytest

from girder_worker_slurm.cluster.interface import QueueRow, SlurmJobId
from tests.unit.slurm.running_jobs import running
from tests.unit.slurm.site import Site
from tests.unit.slurm.waiting import wait_until


@pytest.mark.parametrize(
    "error", [OSError(errno.EAGAIN, "no more processes"), RuntimeError("a mistake of ours")]
)
def test_the_thread_that_lists_the_queue_outlives_an_order_that_cannot_be_given(tmp_path, error):
    """Only `Unreachable` was caught around the orders that are given again: the thread ended, and nobody said so."""
    site = Site(tmp_path, event_seconds=0.01, poll_seconds=0.02)
    running(site)
    queue = site.supervisor._queue
    queue._uncancelled.put((["gw-test-gone"], ""))
    before, errors = site.cluster.cancel, [error]

    def cancel(tokens, **how):
        if errors:
            raise errors.pop()
        before(tokens, **how)

    site.cluster.cancel = cancel
    thread = threading.Thread(target=queue.run, daemon=True)
    thread.start()
    listings = len(site.calls("snapshot"))
    wait_until(lambda: len(site.calls("snapshot")) > listings, lambda: thread)
    site.supervisor._stop.set()
    queue.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_conversion_in_slurm_is_not_looked_for_among_all_jobs_at_each_listing(site):
    """It is no job of a record: all records were read in the supervising thread, every fifteen seconds."""
    asked = []
    site.restart(live_tokens=lambda: asked.append(1) or set(), command_tokens=lambda: {"gw-test-c1"})
    running(site)
    rows = {"gw-test-c1": [QueueRow(SlurmJobId("7"), "RUNNING", "None", "gw-test-c1")]}
    for _ in range(3):
        site.supervisor._queue.end_orphans(rows)
    assert not asked
    assert not site.calls("cancel")


def test_a_job_of_nobody_is_cancelled_unless_another_worker_carries_it(site):
    site.restart(live_tokens=lambda: {"gw-test-2"})
    rows = {name: [QueueRow(SlurmJobId("7"), "RUNNING", "None", name)] for name in ("gw-test-1", "gw-test-2")}
    for _ in range(2):
        site.supervisor._queue.end_orphans(rows)
    assert site.calls("cancel") == [("gw-test-1",)]
