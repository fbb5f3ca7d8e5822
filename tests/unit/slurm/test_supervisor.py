"""The life of jobs under the supervisor, with everything around it pretended."""

from __future__ import annotations

import json

import pytest

from girder_worker_singularity.errors import ConversionFailed, RegistryUnreachable
from girder_worker_slurm.errors import ClusterUnreachable, SubmitDeferred, SubmitRejected
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.retries import RetryRules
from girder_worker_slurm.job.state import GirderUser, Outcome, Phase
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeProgram
from girder_worker_slurm.users.mapping_file import parse_mapping
from tests.unit.slurm.site import GirderJobOfFake, Site, WorkerDied, message_of

SUCCESS, ERROR, CANCELED = JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


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


# -- cancel

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


# -- doubts about a submission


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


# -- ends without a word


@pytest.mark.fault("job gone from Slurm", phases=("running",))
def test_a_started_job_that_vanishes_is_an_error_and_not_started_again(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.forget(site.state().slurm_job_id)
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert site.state().verdict.code == "vanished"
    assert len(site.calls("submit")) == 1


@pytest.mark.fault("job gone from Slurm", phases=("pending",))
def test_a_job_that_vanishes_before_it_starts_is_submitted_again_with_its_token(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    token = site.state().token
    site.cluster.forget(site.state().slurm_job_id)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.calls("submit") == [token, token]


def test_a_job_that_slurm_could_not_launch_on_its_node_is_begun_anew_with_a_new_token(tmp_path):
    """Slurm cancels jobs whose ids it gave out before its controller lost its state (seen: 22.05.8)."""
    site = Site(tmp_path, retries=RetryRules())
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    token = site.state().token
    site.cluster.end(site.state().slurm_job_id, "CANCELLED")
    site.run_until(lambda: site.state().token not in ("", token), seconds=120, steps_slurm=False)
    assert site.runs.claimed_by(token) == "worker"
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.calls("submit") == [token, site.state().token]


def test_a_job_that_no_node_could_launch_says_so(tmp_path):
    site = Site(tmp_path, retries=RetryRules(infrastructure=1))
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    first = site.state()
    site.cluster.end(first.slurm_job_id, "CANCELLED")
    site.run_until(
        lambda: site.state().attempt == 2 and site.is_in(Phase.SUBMITTED)(), seconds=120, steps_slurm=False
    )
    site.cluster.end(site.state().slurm_job_id, "CANCELLED")
    site.run_to_the_end()
    assert site.state().verdict.code == "launch_failed"
    assert "prolog" in "".join(site.shown().log)
    assert len(site.calls("submit")) == 2


def test_accepted_jobs_count_at_once(site):
    """The limit of accepted jobs must not be overrun by those that the supervisor has not looked at yet."""
    site.task()
    assert site.supervisor.live_count == 1


def test_a_job_that_is_lost_again_and_again_is_given_up_and_its_claim_taken(site):
    site.task()

    def forget_all():
        for job_id in list(site.cluster.jobs):
            site.cluster.forget(job_id)
        return site.supervisor.live_count == 0 and site.supervisor._incoming.empty()

    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    site.run_until(forget_all, steps_slurm=False)
    assert site.state().verdict.code == "not_kept"
    assert site.runs.claimed_by(site.state().token) == "worker"
    assert len(site.calls("submit")) == 3


@pytest.mark.fault("slurmctld does not answer", phases=("pending", "running"))
def test_a_failed_listing_changes_nothing(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.is_unreachable = True
    site.run_for(600)
    assert site.state().phase is Phase.SUBMITTED
    assert site.state().verdict is None


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("NODE_FAIL", "node_fail"),
        ("TIMEOUT", "timeout"),
        ("OUT_OF_MEMORY", "out_of_memory"),
        ("PREEMPTED", "preempted"),
    ],
)
def test_a_running_job_that_slurm_ends_without_a_word_tells_slurms_reason(site, word, code):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.end(site.state().slurm_job_id, word)
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert site.state().verdict.code == code


def test_completed_in_slurm_without_a_word_of_the_job_is_no_success(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    site.cluster.end(site.state().slurm_job_id, "COMPLETED")
    site.run_to_the_end(steps_slurm=False)
    assert site.shown().status == ERROR
    assert site.state().verdict.code == "no_result"
    assert site.runs.claimed_by(site.state().token) == "worker"


@pytest.mark.fault("events seen late (caching file system)", phases=("ended",))
def test_a_word_that_comes_late_still_counts(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    job_id = site.state().slurm_job_id
    site.cluster.end(job_id, "COMPLETED")
    site.run_until(lambda: site.job().final_since > 0, steps_slurm=False)
    site.run_for(2)
    site.cluster.jobs[job_id].state = "RUNNING"
    site.cluster.finish(job_id)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS


def test_a_job_that_slurm_holds_for_good_ends_with_the_reason(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    job_id = site.state().slurm_job_id
    site.cluster.end(job_id, "PENDING", reason="launch failed requeued held")
    site.run_to_the_end(steps_slurm=False)
    assert site.shown().status == ERROR
    assert site.state().verdict.code == "launch_failed"
    assert site.cluster.jobs[job_id].state == "CANCELLED"


def test_an_administrators_scancel_is_an_error_that_says_so(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.cancel([site.state().token])
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert site.state().verdict.code == "cancelled_in_slurm"


def test_a_requeued_job_that_is_refused_by_its_own_claim_is_no_success(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    job = site.cluster.jobs[site.state().slurm_job_id]
    job.state, job.restarts = "PENDING", 1
    site.cluster.start(job.slurm_job_id)
    site.run_to_the_end()
    assert site.shown().status == ERROR


# -- limits and images


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


def test_one_failing_image_ends_all_jobs_that_wait_for_it_and_is_made_once(site):
    site.images.error = ConversionFailed("layer 3 is damaged")
    site.one_step_a_turn = True
    for number in range(4):
        site.task(f"t{number}", image="broken:1")
    site.task("good")
    site.run_to_the_end()
    assert [site.shown(f"t{number}").status for number in range(4)] == [ERROR] * 4
    assert "layer 3 is damaged" in site.shown("t3").text
    assert site.shown("good").status == SUCCESS


def test_an_image_that_is_not_here_is_made_before_the_job_goes_on(site):
    site.task(image="new:1")
    site.run_to_the_end()
    assert site.images.made == [("new:1", "if-not-present")]
    assert site.shown().status == SUCCESS


def test_a_registry_that_does_not_answer_is_asked_again_and_then_given_up(site):
    site.images.error = RegistryUnreachable("no answer")
    site.task(image="new:1")
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert 2 <= len(site.images.made) <= 10


# -- Girder


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


# -- events that are not ours


def test_an_event_without_the_right_nonce_is_ignored(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    state = site.state()
    forged = {
        "token": state.token,
        "nonce": "guessed",
        "kind": "ended",
        "slurm_job_id": state.slurm_job_id,
        "exit_code": 0,
        "cause": "exit",
    }
    (site.runs.spool / f"{state.token}.ended.9.9.json").write_text(json.dumps(forged))
    site.run_for(30)
    assert site.state().ended is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 1}', "\0\0", "null"])
@pytest.mark.fault("garbage in the spool", phases=("running",))
def test_files_that_are_no_events_disturb_nobody(site, text):
    (site.runs.spool / "gw-test-x.ended.1.0.json").write_text(text)
    (site.runs.spool / "dangling.json").symlink_to("/nowhere")
    site.task()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS


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


# -- death of the worker

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


# -- whose it is


def test_the_record_says_whose_job_it_is(site):
    site.task()
    site.run_to_the_end()
    assert site.state().user == GirderUser("u1", "ada")
    assert site.girder.user_questions == 1


def test_a_job_of_nobody_runs_and_is_nobodys(site):
    site.girder.user = None
    site.task()
    site.run_to_the_end()
    assert site.state().user is None
    assert site.shown().status == SUCCESS


def test_a_girder_that_is_away_when_asked_for_the_user_is_asked_again(site):
    site.girder.user_silences = 2
    site.task()
    site.run_to_the_end()
    assert site.state().user == GirderUser("u1", "ada")
    assert site.shown().status == SUCCESS


def test_a_user_whom_the_mapping_does_not_have_hears_it_before_anything_is_done(site):
    site.users = parse_mapping("users:\n- login: grace")
    site.restart()
    site.task()
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert "The Girder user ada may not run jobs here" in site.shown().text
    assert site.state().verdict.code == "user_refused"
    assert site.state().user.login == "ada"
    assert "attempt" not in site.entries()
    assert site.calls("submit") == []


def test_a_user_s_options_are_those_of_the_job(site):
    site.users = parse_mapping("users:\n- login: ada\n  account: patho\n  limits: {time: 10}")
    site.restart()
    site.task(arguments=("--slurm_time", "10", "a"))
    site.task("t2", arguments=("--slurm_time", "11", "a"))
    site.run_to_the_end()
    assert site.state().options == (("account", "patho"), ("time", "10"))
    assert site.shown().status == SUCCESS
    assert site.state("t2").verdict.code == "option_refused"
    assert len(site.calls("submit")) == 1


def test_an_ingest_is_for_whoever_may_do_it_in_girder(site):
    site.users = parse_mapping("users: []")
    site.restart()
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    message = message_of(
        "t1", task="slicer_cli_web.image_job.ingest_from_docker", name_list=[], folder_id="f", token="t"
    )
    record = Record.create(site.root.records, message, worker_id="w1", at=site.clock.now())
    site.supervisor.accept(record)
    site.run_to_the_end()
    assert site.state().verdict.code == "ingested"
