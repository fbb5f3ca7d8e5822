"""A worker that dies, stays away or loses a job to another one: each job has run once and is reported once."""

from __future__ import annotations

import pytest

from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.site import WorkerDied

SUCCESS, CANCELED = JobStatus.SUCCESS, JobStatus.CANCELED


ENTRIES = range(1, 14)


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.fault(
    "worker killed at any entry of the record, before or after it is on disk",
    phases=(
        "directory written",
        "inputs staging",
        "intent written",
        "sbatch in flight",
        "submitted",
        "pending",
        "running",
        "ended",
        "outputs uploading",
        "status reporting",
    ),
)
def test_a_worker_that_dies_at_any_entry_runs_the_job_once_and_reports_it_once(site, entry, is_before):
    site.cluster.default_program = FakeProgram(output=b"one\ntwo\n")
    site.death.at_entry, site.death.is_before, site.death.seen = entry, is_before, 1
    site.task()
    with pytest.raises(WorkerDied):
        site.run_to_the_end()
    site.restart()
    site.run_to_the_end()
    shown = site.shown()
    assert shown.status == SUCCESS
    assert shown.statuses.count(SUCCESS) == 1
    assert shown.text.count("one\ntwo\n") == 1
    assert sum(job.has_run for job in site.cluster.jobs.values()) == 1
    assert {kind for kind, _, _ in site.results.sent} == {"success"}


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("entry", range(1, 8))
def test_a_worker_that_dies_while_a_job_runs_still_cancels_it(site, entry, is_before):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.death.at_entry, site.death.is_before, site.death.seen = entry, is_before, 1
    site.task()
    with pytest.raises(WorkerDied):
        site.run_to_the_end()
    site.revoked.add("t1")
    site.restart()
    site.run_to_the_end()
    site.cluster.step()
    assert site.shown().status == CANCELED
    assert all(job.is_final for job in site.cluster.jobs.values())


@pytest.mark.fault("worker away when the job ends", phases=("ended",))
def test_the_end_that_came_while_the_worker_was_away_is_found(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    for _ in range(2):
        site.cluster.step()
    site.restart()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS


@pytest.mark.fault("Slurm has forgotten the job (MinJobAge)", phases=("ended",))
def test_an_end_that_slurm_forgot_while_the_worker_was_away_is_found(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    for _ in range(2):
        site.cluster.step()
    site.cluster.forget(site.state().slurm_job_id)
    site.restart()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert len(site.calls("submit")) == 1


@pytest.mark.fault("second worker takes over", phases=("submitted", "running"))
def test_a_job_that_another_worker_took_over_is_left_alone(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    record = site.task()
    site.run_until(lambda: site.state().started is not None)
    other = type(record).load(record.path, worker_id="w2")
    assert other.take_over()
    site.revoked.add("t1")
    site.run_for(60)
    assert site.supervisor.live_count == 0
    assert site.calls("cancel") == []


def test_a_job_that_another_worker_has_taken_over_is_not_shown_any_more(site):
    """Log and progress were sent without a look at who owns the job: two workers sent the log of one."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    record = site.task()
    site.run_until(lambda: site.state().started is not None)
    other = Record.load(record.path, worker_id="w2")
    assert other.take_over()
    with (site.runs.path(site.state().token) / "output.log").open("ab") as log:
        log.write(b"more\n")
    before = site.girder.puts
    site.run_for(5)
    assert site.girder.puts == before
    assert site.supervisor.live_count == 0
