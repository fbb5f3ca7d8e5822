"""Ended jobs stay on disk for some days, failed ones longer, running ones for ever."""

from __future__ import annotations

import os

import pytest

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.job.retention import Retention
from girder_worker_slurm.job.state import Outcome, Verdict
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record

DAY = 86400.0


class Bench:
    def __init__(self, tmp_path):
        self.root = JobsRoot(tmp_path / "jobs", "w1")
        self.root.prepare()
        self.runs = RunDirectories(self.root.path)
        self.runs.prepare()
        self.clock = FakeClock()
        self.retention = Retention(self.root, self.runs, self.clock, keep_days=7, keep_failed_days=30)

    def job(self, name, outcome=None):
        record = Record.create(self.root.records, {"task_id": name}, worker_id="w1", at=0.0)
        run = self.runs.create(f"gw-{name}")
        log = run.parent.parent / f"{name}.log"
        log.write_text("log")
        record.append("attempt", number=1, token=f"gw-{name}", nonce="n", log_path=str(log))
        if outcome is not None:
            record.decide(Verdict(outcome, "x", "y"))
            self.root.end(record)
        os.utime(record.path / "state.jsonl", (self.clock.now(), self.clock.now()))

    def left(self):
        return {record.task_id for record in self.root.all_records()}


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    bench.job("good", Outcome.SUCCESS)
    bench.job("failed", Outcome.ERROR)
    bench.job("cancelled", Outcome.CANCELED)
    bench.job("runs")
    return bench


@pytest.mark.parametrize(
    ("days", "left"),
    [
        (6.9, {"good", "failed", "cancelled", "runs"}),
        (7.1, {"failed", "cancelled", "runs"}),
        (29.9, {"failed", "cancelled", "runs"}),
        (30.1, {"runs"}),
        (1000, {"runs"}),
    ],
)
def test_jobs_are_removed_when_their_days_are_over(bench, days, left):
    bench.clock.advance(days * DAY)
    assert bench.retention.remove_old() == 4 - len(left)
    assert bench.left() == left


def test_run_directory_and_log_go_with_the_record(bench):
    bench.clock.advance(8 * DAY)
    bench.retention.remove_old()
    assert not bench.runs.path("gw-good").exists()
    assert not (bench.root.path / "good.log").exists()
    assert bench.runs.path("gw-failed").exists()
    assert (bench.root.path / "failed.log").exists()


def test_it_looks_once_an_hour(bench):
    bench.retention.remove_old()
    bench.clock.advance(3500)
    (bench.root.ended / "good" / "state.jsonl").touch()
    os.utime(bench.root.ended / "good" / "state.jsonl", (0, 0))
    assert bench.retention.remove_old() == 0
    bench.clock.advance(200)
    assert bench.retention.remove_old() == 1


def test_a_damaged_record_is_left_to_a_person(bench):
    (bench.root.ended / "good" / "state.jsonl").write_bytes(b"\0\n{}\n")
    os.utime(bench.root.ended / "good" / "state.jsonl", (0, 0))
    bench.retention.remove_old()
    assert (bench.root.ended / "good").exists()
