"""The life of jobs under the supervisor, with everything around it pretended."""

from __future__ import annotations

import pytest

from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.state import Outcome, Phase
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.running_jobs import running
from tests.unit.slurm.site import Site

SUCCESS, ERROR = JobStatus.SUCCESS, JobStatus.ERROR


def test_a_job_goes_from_its_message_to_success(site):
    site.cluster.default_program = FakeProgram(output=b"hello\n<filter-progress>0.5</filter-progress>\nbye\n")
    site.task(arguments=("a b", "$HOME"))
    site.run_to_the_end()
    shown = site.shown()
    assert shown.status == SUCCESS
    assert shown.progress == 1.0
    assert "hello\nbye\n" in shown.text
    assert shown.statuses == [JobStatus.RUNNING, SUCCESS]
    assert site.results.sent == [("success", "t1", [])]
    assert len(site.calls("submit")) == 1


def test_the_story_of_a_job_is_recorded_in_its_order(site):
    site.task()
    site.run_to_the_end()
    assert site.entries() == [
        "accepted",
        "admitted",
        "attempt",
        "staged",
        "rendered",
        "intent",
        "submitted",
        "started",
        "ended",
        "verdict",
        "delivered",
        "result_sent",
        "reported",
        "closed",
    ]


def test_the_arguments_lie_in_the_run_directory_as_they_came(site):
    site.task(arguments=("a b", "", "$HOME\n"))
    site.run_until(site.is_in(Phase.SUBMITTED))
    assert (site.runs.path(site.state().token) / "arguments").read_bytes() == b"a b\0\0$HOME\n\0"


def test_inputs_and_scratch_are_removed_at_the_end_and_log_and_script_stay(site):
    site.task()
    site.run_to_the_end()
    names = {path.name for path in site.runs.path(site.state().token).iterdir()}
    assert {"output.log", "job.slurm"} <= names
    assert not {"volume", "scratch"} & names


def test_an_analysis_that_fails_is_an_error_with_its_exit_code(site):
    site.cluster.default_program = FakeProgram(exit_code=3, output=b"no such region\n")
    site.task()
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert "no such region\n" in site.shown().text
    assert "exit code 3" in site.shown().text
    assert [sent[0] for sent in site.results.sent] == ["failure"]


def test_a_job_that_waits_in_slurm_shows_why(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    (job,) = site.slurm_jobs()
    job.is_held, job.reason = True, "Priority"
    site.run_for(40)
    assert site.shown().message == "Slurm: PENDING (Priority)"
    assert site.shown().status == JobStatus.RUNNING


# -- limits


def test_accepted_jobs_count_at_once(site):
    """The limit of accepted jobs must not be overrun by those that the supervisor has not looked at yet."""
    site.task()
    assert site.supervisor.live_count == 1


def test_no_more_jobs_are_in_slurm_than_allowed_and_the_others_wait_queued(tmp_path):
    site = Site(tmp_path, max_submitted=2)
    site.cluster.default_program = FakeProgram(is_endless=True)
    for number in range(5):
        site.task(f"t{number}")
    site.run_for(60, steps_slurm=True)
    assert len(site.cluster.jobs) == 2
    assert sorted(job.status for job in site.girder.jobs.values()) == [1, 1, 1, 2, 2]
    site.cluster.default_program = FakeProgram()
    site.run_to_the_end()
    assert {job.status for job in site.girder.jobs.values()} == {SUCCESS}
    assert len(site.calls("submit")) == 5


def test_jobs_are_submitted_in_the_order_in_which_they_came(tmp_path):
    site = Site(tmp_path, max_submitted=1)
    for number in range(4):
        site.task(f"t{number}")
    site.run_to_the_end()
    assert site.calls("submit") == [site.state(f"t{number}").token for number in range(4)]


# -- trouble of the worker itself


@pytest.mark.fault("disk full", phases=("ended",))
def test_the_jobs_last_word_is_not_lost_when_the_disk_is_full_for_a_moment(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    record = site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.finish(site.state().slurm_job_id)
    log, away = record.path / "state.jsonl", record.path / "state.away"
    log.rename(away)
    log.mkdir()  # as a full disk: it cannot be written
    for _ in range(4):
        try:
            site.turn()
        except OSError:
            site.clock.advance(1.0)
    log.rmdir()
    away.rename(log)
    site.run_to_the_end()
    assert site.shown().status == 3, site.state().verdict


def test_an_expired_token_is_no_unexpected_error(site, caplog):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    site.girder.refuses_access = True
    (site.runs.path(site.state().token) / "output.log").write_bytes(b"new\n")
    site.run_for(30)
    assert "unexpected error" not in caplog.text


def test_running_jobs_without_output_are_not_looked_at_four_times_a_second(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    feed = site.story.feed(site.job())
    looks = []
    site.story.feed = lambda job: looks.append(job) or feed
    site.run_for(10)
    assert len(looks) <= 12


def test_an_unexpected_error_with_one_job_does_not_hold_up_the_others_or_forget_it(site, monkeypatch):
    """It ended the whole turn of the supervising thread, and the job was not looked at again."""
    (job,) = running(site)
    errors = [RuntimeError("a mistake of ours")]
    told = site.supervisor._events.record

    def record(live):
        if live.task_id == job and errors:
            raise errors.pop()
        told(live)

    monkeypatch.setattr(site.supervisor._events, "record", record)
    site.task("other")
    site.cluster.finish(site.state(job).slurm_job_id)
    site.turn()
    assert not errors
    site.cluster.default_program = FakeProgram()
    site.run_to_the_end(seconds=30)
    assert site.state(job).verdict.outcome is Outcome.SUCCESS


# -- jobs that are not ours


@pytest.mark.fault("job in Slurm that no record knows", phases=("pending", "running"))
def test_slurm_jobs_that_no_record_knows_any_more_are_cancelled(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    (job,) = site.slurm_jobs()
    run = site.runs.create("gw-test-stranger")
    submission = type(job.submission)("gw-test-stranger", run / "job.slurm", run / "slurm.out")
    stranger = site.cluster.submit(submission)
    foreign = site.cluster.submit(type(job.submission)("somebody-else", run / "job.slurm", run / "slurm.out"))
    site.run_for(60)
    assert site.cluster.jobs[stranger].state == "CANCELLED"
    assert site.cluster.jobs[foreign].state == "PENDING"
    assert job.state == "RUNNING"
