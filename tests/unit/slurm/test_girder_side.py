"""A Girder that is away, loses answers or knows the job no more, and tasks that nobody can run."""

from __future__ import annotations

import pytest

from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.state import Outcome, Phase
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.site import message_of

SUCCESS, ERROR = JobStatus.SUCCESS, JobStatus.ERROR


@pytest.mark.fault("Girder away", phases=("message received", "directory written"))
def test_girder_that_does_not_answer_only_delays(site):
    site.girder.is_unreachable = True
    site.task()
    site.run_for(120, steps_slurm=True)
    site.girder.is_unreachable = False
    site.run_to_the_end()
    assert site.shown().status == SUCCESS


@pytest.mark.fault("Girder away", phases=("running",))
def test_girder_that_goes_away_during_a_run_loses_and_repeats_nothing(site):
    site.cluster.default_program = FakeProgram(output=b"one\ntwo\n", is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    site.girder.is_unreachable = True
    site.cluster.default_program = FakeProgram(output=b"one\ntwo\n")
    site.run_for(300, steps_slurm=True)
    assert site.state().verdict.outcome is Outcome.SUCCESS
    site.girder.is_unreachable = False
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.shown().text.count("one\ntwo\n") == 1


def test_the_first_answer_of_girder_wakes_all_who_wait_for_it(site):
    """Else each would wait for up to half a minute more, at every step anew."""
    ids = [f"t{number}" for number in range(12)]
    site.girder.is_unreachable = True
    for task_id in ids:
        site.task(task_id)
        site.run_for(7)
    site.run_for(120)
    site.girder.is_unreachable = False
    puts = site.girder.puts
    site.run_until(lambda: site.girder.puts > puts)
    site.run_for(2, steps_slurm=True)
    assert [site.girder.jobs[f"job-{task_id}"].status for task_id in ids] == [SUCCESS] * len(ids)


def test_a_job_that_girder_alone_stumbles_over_is_not_tried_again_with_each_answer_to_others(site):
    site.girder.stumbles_over.add("job-t1")
    site.task("t1")
    for number in range(2, 32):
        site.task(f"t{number}")
        site.run_for(2, steps_slurm=True)
    assert site.girder.jobs["job-t31"].status == SUCCESS
    assert 5 <= site.girder.stumbles <= 7


@pytest.mark.parametrize("moment", ["message received", "running", "status reporting"])
@pytest.mark.fault("Girder away", phases=("message received", "running", "status reporting"))
def test_the_log_says_once_how_long_girder_was_away(site, moment):
    site.one_step_a_turn = True
    site.cluster.default_program = FakeProgram(output=b"one\n", is_endless=True)
    site.girder.is_unreachable = moment == "message received"
    site.task()
    if moment != "message received":
        site.run_until(lambda: site.state().started is not None and site.job().announced)
    site.cluster.default_program = FakeProgram(output=b"one\n")
    if moment == "status reporting":
        site.run_until(site.is_in(Phase.DELIVERED))
    site.girder.is_unreachable = True
    site.run_for(300, steps_slurm=True)
    site.girder.is_unreachable = False
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.shown().text.count("Girder did not answer as it should for 5 min") == 1
    assert site.shown().text.count("Girder did not answer") == 1


def test_a_question_that_girder_did_not_answer_is_asked_again_soon(site):
    """A job without output is asked for every ten minutes: its log said that Girder had been away for so long."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.run_for(60)
    puts, site.girder.silences = site.girder.puts, 1
    site.run_until(lambda: site.girder.silences == 0, seconds=700)
    site.shown().status = JobStatus.CANCELED
    site.run_until(lambda: site.girder.puts > puts, seconds=10)
    site.run_to_the_end()
    assert "did not answer" not in site.shown().text


def test_a_silence_of_some_seconds_is_not_worth_a_line(site):
    site.girder.is_unreachable = True
    site.task()
    site.run_for(30)
    site.girder.is_unreachable = False
    site.run_to_the_end()
    assert "did not answer" not in site.shown().text


@pytest.mark.parametrize("lost", [1, 2, 3, 5])
@pytest.mark.fault("answers of Girder lost", phases=("submitted", "running", "ended", "status reporting"))
def test_answers_of_girder_that_are_lost_repeat_nothing(site, lost):
    site.cluster.default_program = FakeProgram(output=b"one\ntwo\n")
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED))
    site.girder.lost_answers = lost
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.shown().text.count("one\ntwo\n") == 1
    assert site.shown().text.count("completed") == 1


def test_the_job_of_a_deleted_girder_job_is_cancelled_and_nothing_is_reported(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    del site.girder.jobs["job-t1"]
    site.run_to_the_end(seconds=1500)
    assert site.state().cancel == "deleted"
    assert all(job.is_final for job in site.cluster.jobs.values())


def test_a_girder_job_that_is_gone_before_the_start_never_reaches_slurm(site):
    site.task()
    del site.girder.jobs["job-t1"]
    site.run_to_the_end()
    assert site.calls("submit") == []


def test_a_task_without_a_girder_job_runs_and_gives_its_result(site):
    message = message_of("t1", image="image:1", container_args=[], pull_image=False)
    del message["headers"]["jobInfoSpec"]
    record = type(site.task("other")).create(site.root.records, message, worker_id="w1", at=0.0)
    site.supervisor.accept(record)
    site.run_to_the_end()
    assert ("success", "t1", []) in site.results.sent


def test_a_message_whose_class_is_missing_is_kept_and_told(site):
    site.task(arguments=({"py/object": "histomicstk_extras.Transform"},))
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert "histomicstk-extras" in site.shown().text
    assert len(site.unhandled) == 1


def test_a_task_that_names_no_image_is_an_error(site):
    site.task(image="")
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert "names no Docker image" in site.shown().text
