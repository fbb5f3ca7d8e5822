"""`cancel`."""

from __future__ import annotations

import json
import os
import pwd
import sys

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_slurm.cli.cancel_command import cancel_in_slurm, user_of_worker
from girder_worker_slurm.records.cancel_request import FILE_NAME, cancel_request
from tests.unit.slurm.cli.conftest import attempt


class Cancelled:
    """A cluster that notes what is to be cancelled."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def cancel(self, tokens, *, kill=False, unix_user="") -> None:
        assert not kill
        assert not unix_user
        self.tokens += tokens


@pytest.fixture
def worker(jobs):
    lease = jobs.root.lease(SystemClock())
    yield lease
    lease.release()


def test_the_wish_is_left_for_the_running_worker(jobs, worker):
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")

    result = jobs.run("cancel", "66a1")

    assert (result.exit_code, result.stdout) == (0, "Job task-1: the worker cancels it.\n")
    wish = json.loads((record.path / FILE_NAME).read_text())
    assert set(wish) == {"who", "at"}
    assert cancel_request(record.path) == f"with girder-slurm by {wish['who']}"
    assert jobs.json("jobs")[0]["cancel_requested"] is True


def test_without_a_worker_the_answer_is_no_and_the_wish_stays(jobs):
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")

    result = jobs.run("cancel", "66a1")

    assert result.exit_code == 1
    assert "No worker is running" in result.stderr
    assert "--direct" in result.stderr
    assert (record.path / FILE_NAME).exists()


def test_direct_leaves_the_wish_before_slurm_is_asked(jobs, monkeypatch):
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")

    class Checks(Cancelled):
        def cancel(self, tokens, *, kill=False, unix_user="") -> None:
            assert (record.path / FILE_NAME).exists()
            super().cancel(tokens, kill=kill, unix_user=unix_user)

    cluster = Checks()
    # The package has the command under the name of its module.
    module = sys.modules[cancel_in_slurm.__module__]
    monkeypatch.setattr(module, "_cluster", lambda _settings: cluster)

    result = jobs.run("cancel", "--direct", "66a1")

    assert result.exit_code == 0, result.output
    assert cluster.tokens == [record.state.token]
    assert "the next one to start tells Girder" in result.stdout


def test_a_submission_without_answer_is_cancelled_by_its_name(jobs):
    record = jobs.job("task-1", ("attempt", attempt("task-1")), ("intent", {}), girder_id="66a1")
    cluster = Cancelled()

    assert "if there is one" in cancel_in_slurm(record, cluster)
    assert cluster.tokens == ["gw-abc-task-1"]


def test_root_has_the_jobs_of_the_workers_user_cancelled(jobs, monkeypatch):
    """`scancel --user=root` found none, and the answer was that the Slurm job is cancelled."""
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    users = []

    class Noting(Cancelled):
        def cancel(self, tokens, *, kill=False, unix_user="") -> None:
            super().cancel(tokens, kill=kill)
            users.append(unix_user)

    module = sys.modules[cancel_in_slurm.__module__]
    monkeypatch.setattr(module, "user_of_worker", lambda owner, own: f"{owner} for {own}")
    cancel_in_slurm(record, Noting())
    assert users == [f"{record.path.stat().st_uid} for {os.geteuid()}"]


def test_only_root_asks_slurm_as_another_user():
    daemon = pwd.getpwnam("daemon").pw_uid
    assert user_of_worker(daemon, 0) == "daemon"
    assert user_of_worker(0, 0) == user_of_worker(daemon, daemon) == user_of_worker(daemon, 1234) == ""
    assert user_of_worker(2**31 - 7, 0) == ""


def test_a_job_that_is_not_in_slurm_asks_nothing_of_slurm(jobs):
    cluster = Cancelled()

    assert "is not in Slurm" in cancel_in_slurm(jobs.job("task-1", girder_id="66a1"), cluster)
    assert cluster.tokens == []


def test_a_job_that_has_ended_cannot_be_cancelled(jobs, worker):
    record = jobs.ended("task-1")

    result = jobs.run("cancel", "task-1")

    assert result.exit_code == 1
    assert "(state: succeeded)" in result.stderr
    assert not (record.path / FILE_NAME).exists()


def test_a_damaged_wish_is_still_a_wish(jobs):
    record = jobs.job("task-1")
    (record.path / FILE_NAME).write_text("{")

    assert cancel_request(record.path) == "with girder-slurm"
    assert cancel_request(jobs.job("task-2").path) == ""
