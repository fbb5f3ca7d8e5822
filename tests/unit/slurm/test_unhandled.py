"""Messages that cannot be run are kept, and end nothing."""

from __future__ import annotations

from collections import deque

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
from girder_worker_slurm.errors import GirderUnreachable
from girder_worker_slurm.records.jobs_root import JobsRoot
from tests.unit.slurm.site import broker_message


def test_a_message_nested_too_deep_does_not_end_the_consumer(tmp_path):
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    unhandled = UnhandledMessages(root, None, FakeClock(), lambda _work: None)
    acknowledged = []
    message = broker_message([[], {}, {}], headers={"id": "t1", "task": "x"})
    message.acknowledged, message.ack = False, lambda: acknowledged.append(True)

    def receive(_message):
        raise RecursionError("maximum recursion depth exceeded")

    unhandled.guarded(receive)(message)
    assert acknowledged
    assert (root.unhandled / "t1" / "message.json").exists()


class Girders:
    """One that answers, and others that are away."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.told: list[tuple[str, float]] = []
        self.tries = 0

    def update(self, job, **_what):
        if "away" in job.url:
            self.tries += 1
            msg = "It does not answer."
            raise GirderUnreachable(msg)
        self.told.append((job.job_id, self.clock.monotonic()))


def test_a_girder_that_is_away_does_not_keep_the_jobs_of_another_waiting(tmp_path):
    root, clock, works = JobsRoot(tmp_path / "jobs", "w1"), FakeClock(), deque()
    root.prepare()
    girders, begun = Girders(clock), clock.monotonic()
    unhandled = UnhandledMessages(root, girders, clock, works.append)
    for number, host in enumerate(["away"] * 10 + ["here"]):
        spec = {
            "method": "PUT",
            "url": f"http://{host}.invalid/api/v1/job/j{number}",
            "headers": {"Girder-Token": "t"},
        }
        message = broker_message([[], {}, {}], headers={"id": f"t{number}", "task": "x", "jobInfoSpec": spec})
        message.ack = lambda: None
        unhandled.unknown_task(message)
    while works:
        works.popleft()()
    ((job, at),) = girders.told
    assert (job, at - begun) == ("j10", 0.0)
    assert girders.tries == 10 * 20
    # The one who tries again and again is no busier for it.
    assert clock.monotonic() - begun >= 19 * 15
