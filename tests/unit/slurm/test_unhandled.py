"""Messages that cannot be run are kept, and end nothing."""

from __future__ import annotations

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
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
