"""Ended jobs stay on disk for some days, failed ones longer, running ones for ever; so do their SIFs."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from girder_worker_singularity.errors import GirderListUnknown
from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.prune import PruneRules
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.sif.use import last_used
from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.job.retention import ImageRetention, RemovedImages, Retention
from girder_worker_slurm.job.state import Outcome, Verdict
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from tests.support.sif_files import FakeApptainer
from tests.unit.slurm.mapped_users import MAPPING
from tests.unit.slurm.site import Site

DAY = 86400.0


class Bench:
    def __init__(self, tmp_path):
        self.root = JobsRoot(tmp_path / "jobs", "w1")
        self.root.prepare()
        self.runs = RunDirectories(self.root.path)
        self.runs.prepare()
        self.clock = FakeClock()
        self.retention = Retention(
            self.root, lambda _: self.runs, self.clock, keep_days=7, keep_failed_days=30
        )

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


def test_what_a_job_said_after_its_end_is_removed_with_it_from_any_users_spool(tmp_path):
    """Of the spools only the worker's own was tidied: a second copy's word stayed in another user's for ever."""
    site = Site(tmp_path)
    site.users = MAPPING
    site.restart()
    site.task()
    site.run_to_the_end()
    state = site.state()
    spool = site.others["daemon"].spool
    words = {"token": state.token, "kind": "refused", "nonce": "x", "slurm_job_id": "9", "why": "claimed"}
    (spool / f"{state.token}.refused.9.0.json").write_text(json.dumps(words))
    (spool / "gw-test-other.refused.9.0.json").write_text(json.dumps({**words, "token": "gw-test-other"}))
    runs_of = site.supervisor._do.runs_of
    retention = Retention(site.root, runs_of, site.clock, keep_days=7, keep_failed_days=30)
    site.clock.advance(time.time() - site.clock.now() + 8 * 86400)
    assert retention.remove_old() == 1
    assert [path.name for path in spool.iterdir()] == ["gw-test-other.refused.9.0.json"]
    assert not (site.others["daemon"].root / state.token).exists()


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


class Shelf:
    """A store with two SIFs, one of which a live job runs from."""

    def __init__(self, tmp_path, rules):
        self.clock = FakeClock(time.time())
        options = StoreOptions(ConvertOptions(tmp_dir=tmp_path / "build"), minimum_free_bytes=0)
        self.store = SifStore(
            tmp_path / "sifs",
            FakeApptainer().runner(),
            self.clock,
            options,
            ask_registry=lambda *_: None,
            ask_engine=lambda _: None,
        )
        self.used, self.idle = self.store.ensure("used:1").path, self.store.ensure("idle:1").path
        self.in_use = {str(self.used), "/gone/x.sif"}
        self.retention = ImageRetention(self.store.root, self.clock, rules, sifs_in_use=lambda: self.in_use)


@pytest.mark.parametrize("rules", [PruneRules(unused_seconds=30 * DAY), PruneRules(most_bytes=1)])
def test_the_sif_of_a_live_job_stays_however_long_the_worker_was_down(tmp_path, rules):
    shelf = Shelf(tmp_path, rules)
    shelf.clock.advance(100 * DAY)
    assert shelf.retention.look_after() == 1
    assert shelf.used.exists()
    assert not shelf.idle.exists()


def test_a_live_job_stamps_its_sif_every_hour(tmp_path):
    shelf = Shelf(tmp_path, PruneRules())
    shelf.retention.look_after()
    first = last_used(shelf.used)
    shelf.clock.advance(3599)
    shelf.retention.look_after()
    assert last_used(shelf.used) == first
    shelf.clock.advance(1)
    shelf.retention.look_after()
    assert last_used(shelf.used) == first + 3600
    assert last_used(shelf.idle) is None


def test_sifs_stay_until_a_rule_says_otherwise(tmp_path):
    shelf = Shelf(tmp_path, PruneRules())
    shelf.clock.advance(1000 * DAY)
    assert shelf.retention.look_after() == 0
    assert shelf.idle.exists()


class TestImagesThatWereRemovedFromGirder:
    @pytest.fixture
    def shelf(self, tmp_path):
        """A store with two images that were ingested, and one that was not."""
        shelf = Shelf(tmp_path, PruneRules())
        shelf.other = shelf.store.ensure("other:1").path
        shelf.descriptions = tmp_path / "cli"
        shelf.descriptions.mkdir()
        for sif in (shelf.used, shelf.idle):
            (shelf.descriptions / f"{sif.name}.json").touch()
        shelf.listed = frozenset({"docker.io/library/used:1"})
        shelf.removed = RemovedImages(
            shelf.store.root, shelf.descriptions, shelf.clock, listed=lambda: shelf.listed
        )
        return shelf

    def test_the_sif_of_one_goes_and_others_stay(self, shelf):
        shelf.clock.advance(3 * DAY)
        assert shelf.removed.remove() == 1
        assert not shelf.idle.exists()
        assert not (shelf.descriptions / "idle_1.sif.json").exists()
        assert shelf.used.exists()
        assert shelf.other.exists()

    def test_one_that_was_used_within_a_day_stays(self, shelf):
        shelf.clock.advance(0.9 * DAY)
        assert shelf.removed.remove() == 0
        assert (shelf.descriptions / "idle_1.sif.json").exists()

    def test_an_empty_list_removes_nothing(self, shelf, caplog):
        shelf.listed = frozenset()
        shelf.clock.advance(3 * DAY)
        assert shelf.removed.remove() == 0
        assert "no images at all" in caplog.text

    def test_a_girder_that_does_not_answer_is_told_and_asked_again_an_hour_later(self, shelf, caplog):
        asked = threading.Semaphore(0)

        def fail():
            asked.release()
            raise GirderListUnknown("No answer.")

        removed = RemovedImages(shelf.store.root, shelf.descriptions, shelf.clock, listed=fail)
        for _ in range(2):
            removed.look_after()
            assert asked.acquire(timeout=10)
            removed._thread.join(10)
            removed.look_after()
            assert not asked.acquire(blocking=False)
            shelf.clock.advance(3601)
        assert "stay: No answer." in caplog.text


def test_a_sif_is_in_use_from_the_script_to_the_end_of_the_job_over_a_restart(tmp_path):
    site = Site(tmp_path)
    sif = str(site.images.path)
    assert site.supervisor.sifs_in_use() == set()
    site.task()
    site.run_until(lambda: site.state().slurm_job_id, steps_slurm=False)
    assert last_used(site.images.path) is not None
    assert site.supervisor.sifs_in_use() == {sif}
    site.restart()
    assert site.supervisor.sifs_in_use() == {sif}
    site.run_to_the_end()
    assert site.supervisor.sifs_in_use() == set()


def test_a_job_whose_sif_is_removed_as_it_takes_it_waits_for_another(tmp_path):
    site = Site(tmp_path)
    site.images.path.unlink()
    site.task()
    site.run_until(lambda: site.images.made, steps_slurm=False)
    assert site.entries()[-1] == "staged"
    site.images.path.touch()
    site.run_to_the_end()
    assert "rendered" in site.entries()
