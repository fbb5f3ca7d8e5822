"""The supervisor with its own threads on a real Slurm; Girder is pretended, and so is Apptainer: a script prints."""

from __future__ import annotations

import getpass
import os
import shutil
import uuid
from pathlib import Path
from time import monotonic, sleep

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.girder.job_updates import JobStatus
from tests.unit.slurm.site import Site

pytestmark = pytest.mark.slurm


class SlurmSite(Site):
    """The site of the unit tests with a real cluster, real time and real threads."""

    def __init__(self, base: Path, container: str) -> None:
        self.container = base / "apptainer"
        self.container.write_text(f"#!/bin/bash\n{container}\n")
        self.container.chmod(0o755)
        super().__init__(base, poll_seconds=1.0, event_seconds=0.1, log_interval_seconds=0.2)
        self.clock = SystemClock()
        options = CommandOptions(user=getpass.getuser(), timeout_seconds=60.0)
        self.cluster = CommandCluster(LocalCommandRunner(), self.clock, CallBudget(50.0, self.clock), options)
        self.submit_options = (("mem", "50M"), ("ntasks", "1"))
        self.apptainer = str(self.container)
        self.start()

    def start(self) -> None:
        """A worker's start, as `restart` but with threads."""
        self.restart()
        records = [job.record for job in self.supervisor._jobs.values()]
        self.supervisor._jobs.clear()
        self.supervisor._events._by_token.clear()
        self.supervisor.start(records)

    def wait(self, condition, what: str) -> None:
        until = monotonic() + 60
        while not condition():
            assert monotonic() < until, f"{what} did not come: {self.describe()}"
            sleep(0.05)

    def wait_for_end(self) -> None:
        self.wait((self.root.ended / "t1" / "state.jsonl").exists, "the end")

    def describe(self) -> str:
        mine = {job.state.token for job in self.supervisor._jobs.values()}
        rows = [row for row in self.cluster.snapshot().rows if row.token in mine]
        return (
            f"jobs {[job.state for job in self.supervisor._jobs.values()]}\nslurm {rows}\n{self.girder.jobs}"
        )


@pytest.fixture
def make_site():
    shared = Path(os.environ.get("DEVSTACK_SHARED", str(Path.home())))
    base = shared / f"supervisor-{uuid.uuid4().hex[:8]}"
    base.mkdir(mode=0o700)
    made = []

    def make(container: str) -> SlurmSite:
        made.append(SlurmSite(base, container))
        return made[-1]

    yield make
    for site in made:
        site.supervisor.stop()
        tokens = {path.name for path in site.runs.root.iterdir()}
        rows = site.cluster.snapshot().rows
        site.cluster.cancel(
            [row.token for row in rows if row.token in tokens and row.state not in FINAL_STATES]
        )
    shutil.rmtree(base, ignore_errors=True)


def test_a_job_runs_and_its_log_and_success_are_shown(make_site):
    site = make_site("echo hello; echo '<filter-progress>0.5</filter-progress>'; echo bye")
    site.task()
    site.wait_for_end()
    assert site.shown().status == JobStatus.SUCCESS
    assert "hello\nbye\n" in site.shown().text


def test_a_failing_analysis_is_an_error(make_site):
    site = make_site("echo no such region; exit 3")
    site.task()
    site.wait_for_end()
    assert site.shown().status == JobStatus.ERROR
    assert "exit code 3" in site.shown().text


def test_a_cancel_ends_the_slurm_job_and_shows_canceled(make_site):
    site = make_site("echo ready; exec sleep 600")
    site.task()
    site.wait(lambda: "ready" in site.shown().text, "the start")
    site.revoked.add("t1")
    site.wait_for_end()
    assert site.shown().status == JobStatus.CANCELED
    detail = site.cluster.describe(site.state().slurm_job_id)
    site.wait(lambda: site.cluster.describe(detail.slurm_job_id).state == "CANCELLED", "the end in Slurm")


@pytest.mark.fault("cancelled by an administrator (scancel)", phases=("running",))
def test_an_administrators_scancel_is_told_as_such(make_site):
    site = make_site("echo ready; exec sleep 600")
    site.task()
    site.wait(lambda: "ready" in site.shown().text, "the start")
    site.cluster.cancel([site.state().token])
    site.wait_for_end()
    assert site.shown().status == JobStatus.ERROR
    assert site.state().verdict.code == "cancelled_in_slurm"


@pytest.mark.fault("worker stopped (SIGTERM)", phases=("running",))
def test_a_job_goes_on_while_there_is_no_worker(make_site):
    site = make_site("echo ready; sleep 8; echo done")
    site.task()
    site.wait(lambda: "ready" in site.shown().text, "the start")
    site.supervisor.stop()
    ended = site.state().slurm_job_id
    site.wait(lambda: site.cluster.describe(ended).state == "COMPLETED", "the end in Slurm")
    assert site.shown().status == JobStatus.RUNNING
    site.start()
    site.wait_for_end()
    assert site.shown().status == JobStatus.SUCCESS
    assert site.shown().text.count("ready\ndone\n") == 1


def test_two_jobs_of_one_user_do_not_disturb_each_other(make_site):
    site = make_site('echo "mine: $*" | tail -c 8')
    site.task("t1", arguments=("one",))
    site.task("t2", arguments=("two",))
    site.wait(lambda: all((site.root.ended / name).exists() for name in ("t1", "t2")), "both ends")
    assert "one" in site.shown("t1").text
    assert "two" in site.shown("t2").text
