"""A message is acknowledged exactly when its record is on the disk, and given back when it cannot be."""

from __future__ import annotations

import contextlib
import time

import pytest

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.celery_worker.intake import Intake
from girder_worker_slurm.records.jobs_root import JobsRoot
from tests.unit.slurm.site import broker_message


class Supervisor:
    def __init__(self) -> None:
        self.accepted = []
        self.live_count = 0

    def accept(self, record) -> None:
        self.accepted.append(record)


class Bench:
    def __init__(self, tmp_path, max_accepted=100):
        self.root = JobsRoot(tmp_path / "jobs", "w1")
        self.root.prepare()
        self.supervisor = Supervisor()
        self.seen = []
        self.intake = Intake(
            self.root,
            self.supervisor,
            FakeClock(),
            max_accepted=max_accepted,
            pause=lambda: self.seen.append("pause"),
            resume=lambda: self.seen.append("resume"),
        )

    def take(self, task_id="t1"):
        """The message; what became of it is in `seen`, with whether its record was there by then."""
        message = broker_message([[], {}, {}], headers={"id": task_id, "task": "x"})

        def note(what):
            self.seen.append((what, task_id, self.root.has(task_id)))

        self.intake.take(message, lambda: note("ack"), lambda: note("reject"))

    def work(self):
        """What the writer's thread does in one round."""
        batch = self.intake._next_batch() if not self.intake._arrivals.empty() else []
        if batch:
            self.intake._write(batch)
        self.intake._check_limits()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_message_is_acknowledged_only_when_its_record_is_there(bench):
    bench.take()
    assert bench.seen == []
    bench.work()
    assert bench.seen == [("ack", "t1", True)]
    assert [record.task_id for record in bench.supervisor.accepted] == ["t1"]


@pytest.mark.fault("worker killed (SIGKILL)", phases=("message received",))
def test_a_crash_before_the_acknowledgement_has_the_record_already(bench):
    class Died(BaseException):
        pass

    def die():
        raise Died

    bench.intake.take(broker_message([[], {}, {}], headers={"id": "t1", "task": "x"}), die, die)
    with pytest.raises(Died):
        bench.work()
    assert [record.task_id for record in bench.root.own_records()] == ["t1"]


def test_a_job_is_carried_although_its_message_cannot_be_acknowledged(tmp_path):
    """It was on disk and nobody's until the next start: the message that came again found its record."""
    bench = Bench(tmp_path)

    def fail():
        raise RuntimeError("the event loop is gone")

    message = broker_message([[], {}, {}], headers={"id": "t1", "task": "x"})
    bench.intake.take(message, fail, fail)
    with contextlib.suppress(RuntimeError):
        bench.work()
    assert [record.task_id for record in bench.supervisor.accepted] == ["t1"]


@pytest.mark.fault("message redelivered or duplicated", phases=("message received", "directory written"))
def test_a_message_that_comes_again_is_acknowledged_and_does_nothing_more(bench):
    bench.take()
    bench.work()
    bench.take()
    bench.work()
    assert [what for what, _, _ in bench.seen] == ["ack", "ack"]
    assert len(bench.supervisor.accepted) == 1


@pytest.mark.fault("message redelivered or duplicated", phases=("status reporting",))
def test_a_message_of_a_job_that_has_ended_does_nothing_more(bench):
    bench.take()
    bench.work()
    bench.root.end(bench.supervisor.accepted[0])
    bench.take()
    bench.work()
    assert len(bench.supervisor.accepted) == 1
    assert bench.seen[-1] == ("ack", "t1", True)


def test_one_message_twice_in_one_round_is_one_job(bench):
    bench.take()
    bench.take()
    bench.work()
    assert len(bench.supervisor.accepted) == 1
    assert len(bench.seen) == 2


def test_many_messages_are_written_in_one_round(bench):
    for number in range(50):
        bench.take(f"t{number}")
    bench.work()
    assert len(bench.supervisor.accepted) == 50
    assert all(there for _, _, there in bench.seen)


def break_disk(bench):
    bench.root.records.rmdir()
    bench.root.records.write_text("no directory")


def mend_disk(bench):
    bench.root.records.unlink()
    bench.root.records.mkdir()


@pytest.mark.fault("disk full", phases=("message received",))
def test_when_the_disk_refuses_consuming_stops_first_and_then_the_messages_go_back(bench):
    break_disk(bench)
    bench.take("t1")
    bench.take("t2")
    bench.intake._write(bench.intake._next_batch())
    assert bench.seen == ["pause", ("reject", "t1", False), ("reject", "t2", False)]
    assert bench.supervisor.accepted == []
    assert bench.intake.is_paused


def test_consuming_goes_on_when_the_disk_can_be_written_again(bench):
    break_disk(bench)
    bench.take()
    bench.work()
    mend_disk(bench)
    bench.work()
    assert bench.seen[-1] == "resume"
    bench.take()
    bench.work()
    assert [record.task_id for record in bench.supervisor.accepted] == ["t1"]


def test_consuming_stops_at_the_limit_and_goes_on_well_below_it(tmp_path):
    bench = Bench(tmp_path, max_accepted=10)
    bench.supervisor.live_count = 10
    bench.work()
    bench.work()
    assert bench.seen == ["pause"]
    bench.supervisor.live_count = 9
    bench.work()
    assert bench.seen == ["pause"]
    bench.supervisor.live_count = 8
    bench.work()
    assert bench.seen == ["pause", "resume"]


def test_messages_that_are_here_already_are_taken_during_a_pause(tmp_path):
    bench = Bench(tmp_path, max_accepted=1)
    bench.supervisor.live_count = 1
    bench.work()
    bench.take()
    bench.work()
    assert bench.seen == ["pause", ("ack", "t1", True)]


def test_the_writer_works_in_a_thread_of_its_own_and_stops_when_told(bench):
    bench.intake.start()
    bench.take()
    until = time.monotonic() + 10
    while not bench.seen:
        assert time.monotonic() < until
        time.sleep(0.005)
    bench.intake.stop()
    assert not bench.intake._thread.is_alive()
    assert bench.seen == [("ack", "t1", True)]
