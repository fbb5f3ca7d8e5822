"""A cancel in each phase of a job: nothing starts any more, what runs is ended, and what has ended stays."""

from __future__ import annotations

import pytest

from girder_worker_singularity.errors import RegistryUnreachable
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.testing import FakeProgram

SUCCESS, ERROR, CANCELED = JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED


PHASES = [Phase.ACCEPTED, Phase.ADMITTED, Phase.STAGED, Phase.RENDERED, Phase.SUBMITTING, Phase.SUBMITTED]


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancel_in_each_phase_before_the_start_runs_nothing(site, phase):
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(phase), steps_slurm=False)
    site.revoked.add("t1")
    site.run_to_the_end(steps_slurm=False)
    site.cluster.step()
    assert site.shown().status == CANCELED
    assert all(not job.has_run for job in site.cluster.jobs.values())
    assert [sent[0] for sent in site.results.sent] == ["revoked"]


def test_a_cancel_of_a_running_job_reaches_slurm_and_ends_canceled(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == CANCELED
    assert len(site.calls("cancel")) == 1


def test_a_cancel_that_girder_tells_with_an_answer_is_a_cancel(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    site.shown().status = JobStatus.CANCELING
    site.run_to_the_end(seconds=1500)
    assert site.shown().status == CANCELED


def test_a_job_that_was_cancelled_before_the_worker_saw_it_never_reaches_slurm(site):
    site.task(status=JobStatus.CANCELED)
    site.run_to_the_end()
    assert site.shown().status == CANCELED
    assert site.calls("submit") == []


def test_a_cancel_after_the_analysis_but_before_the_report_wins(site):
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(Phase.DECIDED))
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == CANCELED


@pytest.mark.parametrize(("code", "status", "word"), [(0, SUCCESS, "success"), (3, ERROR, "failure")])
def test_a_cancel_after_girder_has_taken_the_end_changes_nothing(site, code, status, word):
    site.cluster.default_program = FakeProgram(exit_code=code)
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(Phase.DELIVERED))
    # Girder takes it, but its answer gets lost; then the user cancels what he still sees running.
    site.girder.lost_answers = 1
    site.run_until(lambda: site.shown().status == status)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == status
    assert [what for what, *_ in site.results.sent] == [word]


def test_a_cancel_while_the_image_is_made_ends_the_job(site):
    site.images.error = RegistryUnreachable("no answer")
    site.task(image="other:1")
    site.run_until(lambda: site.images.made != [])
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == CANCELED
    assert site.calls("submit") == []
