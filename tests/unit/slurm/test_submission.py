"""Submissions that are refused, or of which nobody knows whether they were made: one run."""

from __future__ import annotations

import pytest

from girder_worker_slurm.errors import ClusterUnreachable, SubmitDeferred, SubmitRejected, SubmitUnsure
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.state import Outcome, Phase

SUCCESS, ERROR, CANCELED = JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED


@pytest.mark.parametrize("is_taken", [True, False])
@pytest.mark.fault("sbatch times out although the job exists", phases=("sbatch in flight",))
def test_a_submission_whose_answer_was_lost_ends_in_exactly_one_run(site, is_taken):
    site.cluster.lose_answer_of_next_submit(is_taken=is_taken)
    site.task()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert sum(job.has_run for job in site.cluster.jobs.values()) == 1
    assert len(site.calls("submit")) == (1 if is_taken else 2)


@pytest.mark.fault("frozen controller takes a submission late", phases=("sbatch in flight", "submitted"))
def test_a_submission_that_surfaces_late_does_not_run_a_second_time(site):
    site.cluster.lose_answer_of_next_submit(is_taken=False)
    site.task()
    site.run_until(lambda: len(site.calls("submit")) == 2, steps_slurm=False)
    (job,) = site.slurm_jobs()
    late = site.cluster.submit(job.submission)
    site.run_to_the_end()
    site.cluster.step()
    assert site.shown().status == SUCCESS
    assert site.cluster.runs_of(job.token) == 1
    assert late in site.cluster.jobs


@pytest.mark.fault("frozen controller takes a submission late", phases=("sbatch in flight", "submitted"))
def test_a_late_copy_that_runs_first_is_the_one_that_counts(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    (job,) = site.slurm_jobs()
    other = site.cluster.submit(job.submission)
    site.cluster.start(other)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.state().slurm_job_id == other
    assert site.cluster.runs_of(job.token) == 1


@pytest.mark.fault("slurmctld does not answer", phases=("sbatch in flight",))
def test_the_lookup_goes_on_while_slurm_does_not_answer(site):
    site.cluster.lose_answer_of_next_submit(is_taken=True)
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTING), steps_slurm=False)
    site.cluster.is_unreachable = True
    site.run_for(300)
    assert site.state().phase is Phase.SUBMITTING
    site.cluster.is_unreachable = False
    site.run_to_the_end()
    assert len(site.calls("submit")) == 1
    assert site.shown().status == SUCCESS


def test_a_cancel_during_a_doubt_lets_nothing_start(site):
    site.cluster.lose_answer_of_next_submit(is_taken=True)
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTING), steps_slurm=False)
    site.revoked.add("t1")
    site.run_to_the_end()
    site.cluster.step()
    assert site.shown().status == CANCELED
    assert all(not job.has_run for job in site.cluster.jobs.values())


def test_a_refused_submission_ends_the_job_with_slurms_words(site):
    site.cluster.refuse_next_submit(SubmitRejected("Slurm refused the job: Invalid account"))
    site.task()
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert "Invalid account" in site.shown().text
    assert len(site.calls("submit")) == 1


@pytest.mark.parametrize("error", [SubmitDeferred("MaxSubmitJob"), ClusterUnreachable("no sbatch")])
def test_a_submission_that_is_not_possible_now_is_made_later(site, error):
    for _ in range(5):
        site.cluster.refuse_next_submit(error)
    site.task()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert len(site.calls("submit")) == 6


@pytest.mark.fault("frozen controller takes a submission late", phases=("submitted",))
def test_a_refusal_does_not_end_a_job_of_which_an_earlier_submission_runs(site):
    """The claim was taken for the refused one, and whether it was got was not looked at: the running one was forgotten."""
    submit, tries = site.cluster.submit, []

    def late(submission):
        tries.append(submission)
        if len(tries) == 1:
            raise SubmitUnsure("the controller is frozen")
        site.cluster.start(submit(submission))
        raise SubmitRejected("Invalid account")

    site.cluster.submit = late
    site.task()
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert len(tries) == 2


@pytest.mark.fault("frozen controller takes a submission late", phases=("submitted",))
def test_a_submission_that_starts_while_it_is_given_up_is_not_given_up(site):
    submit, claim, tries = site.cluster.submit, site.runs.claim, []

    def unsure(submission):
        tries.append(submission)
        raise SubmitUnsure("the controller is frozen")

    def claims(token, why):
        if why == "given up":
            site.cluster.start(submit(tries[0]))
        return claim(token, why)

    site.cluster.submit, site.runs.claim = unsure, claims
    site.task()
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS
