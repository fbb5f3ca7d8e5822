"""Jobs that Slurm ends, loses or has never started, and that have not said how they ended themselves."""

from __future__ import annotations

import pytest

from girder_worker_slurm.cluster.interface import Submission
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.preparation import Preparation
from girder_worker_slurm.job.retries import RetryRules
from girder_worker_slurm.job.state import Outcome, Phase
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.running_jobs import running
from tests.unit.slurm.site import Site

SUCCESS, ERROR = JobStatus.SUCCESS, JobStatus.ERROR


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


@pytest.mark.fault(
    "slurmctld lost an acknowledged job and gave its id out again", phases=("running", "ended")
)
def test_a_job_that_slurm_lost_and_whose_node_goes_on_with_it_is_waited_for(site):
    """Seen with 22.05.8: a controller that was killed had saved nothing of the last five jobs; their nodes ran them to the end."""
    running(site)
    number = site.state().slurm_job_id
    lost = site.cluster.jobs[number]
    site.cluster.forget(number)
    for _ in range(10):
        site.run_for(50)
        with (lost.run / "output.log").open("ab") as log:
            log.write(b"one more tile\n")
    assert site.shown().status == JobStatus.RUNNING
    asked = len(site.calls("describe"))
    assert asked <= 50
    site.cluster.jobs[number] = lost
    site.cluster.finish(number)
    site.cluster.forget(number)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert "".join(site.shown().log).count("one more tile") == 10
    assert len(site.calls("submit")) == 1


def test_a_job_that_slurm_lost_counts_as_dead_when_its_log_stands_still_for_a_minute(site):
    running(site)
    site.cluster.forget(site.state().slurm_job_id)
    begun = site.clock.monotonic()
    site.run_to_the_end()
    assert site.state().verdict.code == "vanished"
    assert 60 <= site.clock.monotonic() - begun <= 120


@pytest.mark.fault("slurmctld lost an acknowledged job and gave its id out again", phases=("running",))
def test_a_job_whose_id_slurm_gave_to_another_and_that_is_silent_is_run_again(tmp_path):
    """Seen with 22.05.8: the node's orphans are killed when it registers with the controller."""
    site = Site(tmp_path, retries=RetryRules())
    running(site)
    first = site.state()
    site.cluster.default_program = FakeProgram()
    site.cluster.crash(first.slurm_job_id)
    site.cluster.submit(Submission("gw-another", site.runs.path("x") / "s", site.runs.path("x") / "o"))
    site.run_for(50)
    assert site.state().token == first.token
    site.run_until(lambda: site.state().token not in ("", first.token), seconds=60, steps_slurm=False)
    site.cluster.jobs.pop(first.slurm_job_id, None)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert f"Try 1: Slurm job {first.slurm_job_id} was lost by Slurm" in "".join(site.shown().log)


def test_a_cancel_of_a_job_that_slurm_lost_is_not_kept_waiting(site):
    running(site)
    site.cluster.forget(site.state().slurm_job_id)
    site.run_for(20)
    site.revoked.add("t1")
    begun = site.clock.monotonic()
    site.run_to_the_end()
    assert site.shown().status == JobStatus.CANCELED
    assert site.clock.monotonic() - begun < 30


@pytest.mark.fault("job gone from Slurm", phases=("pending",))
def test_a_job_that_vanishes_before_it_starts_is_submitted_again_with_its_token(site):
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    token = site.state().token
    site.cluster.forget(site.state().slurm_job_id)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.calls("submit") == [token, token]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        # Jobs whose ids it gave out before its controller lost its state; a node that cannot open the output (seen: 22.05.8).
        ("CANCELLED", "None"),
        ("FAILED", "JobLaunchFailure"),
    ],
)
def test_a_job_that_slurm_could_not_launch_on_its_node_is_begun_anew_with_a_new_token(tmp_path, end, reason):
    site = Site(tmp_path, retries=RetryRules())
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    token = site.state().token
    site.cluster.end(site.state().slurm_job_id, end, reason=reason)
    site.run_until(lambda: site.state().token not in ("", token), seconds=120, steps_slurm=False)
    assert site.runs.claimed_by(token) == "worker"
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.calls("submit") == [token, site.state().token]


def test_a_job_that_failed_on_its_node_for_another_reason_is_not_begun_anew(tmp_path):
    site = Site(tmp_path, retries=RetryRules())
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    site.cluster.end(site.state().slurm_job_id, "FAILED", reason="NonZeroExitCode")
    site.run_to_the_end(steps_slurm=False)
    assert site.state().verdict.code == "script_failed"
    assert len(site.calls("submit")) == 1


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


def test_a_word_that_comes_late_ends_the_wait_for_it_at_once(site):
    (job,) = running(site)
    slurm_job_id = site.state(job).slurm_job_id
    site.cluster.end(slurm_job_id, "FAILED")
    site.run_until(lambda: bool(site.calls("describe")), steps_slurm=False)
    site.cluster.finish(slurm_job_id)
    site.run_to_the_end(steps_slurm=False, seconds=1)
    assert site.state(job).verdict.outcome is Outcome.SUCCESS


@pytest.mark.parametrize(
    ("state", "signal", "restarts", "at_least", "at_most"),
    [
        # Its script came to its end, and has left a word: some mount may show that late.
        ("COMPLETED", 0, 0, 120, 140),
        ("FAILED", 0, 0, 120, 140),
        # It was killed; or its second start was turned away by the claim.
        ("FAILED", 9, 0, 10, 30),
        ("TIMEOUT", 0, 0, 10, 30),
        ("COMPLETED", 0, 1, 10, 30),
    ],
)
def test_a_word_that_should_be_there_is_waited_for_longer(site, state, signal, restarts, at_least, at_most):
    (job,) = running(site)
    slurm_job_id = site.state(job).slurm_job_id
    site.cluster.jobs[slurm_job_id].restarts = restarts
    site.cluster.end(slurm_job_id, state, signal=signal)
    begun = site.clock.monotonic()
    site.run_to_the_end(steps_slurm=False)
    assert site.state(job).verdict.outcome is Outcome.ERROR
    assert at_least <= site.clock.monotonic() - begun <= at_most
    assert len(site.calls("describe")) <= 2


def test_what_slurm_said_of_an_end_counts_though_it_forgets_that_while_a_word_is_waited_for(site):
    (job,) = running(site)
    slurm_job_id = site.state(job).slurm_job_id
    site.cluster.end(slurm_job_id, "FAILED", reason="NonZeroExitCode")
    site.run_until(lambda: bool(site.calls("describe")), steps_slurm=False)
    site.cluster.forget(slurm_job_id)
    begun = site.clock.monotonic()
    site.run_to_the_end(steps_slurm=False)
    assert site.state(job).verdict.code == "script_failed"
    assert site.clock.monotonic() - begun <= 140


def test_a_form_that_waits_for_a_script_which_died_on_this_host_is_told_soon(site, monkeypatch):
    """What it wrote is seen here at once: no mount is late with it."""
    monkeypatch.setattr(Preparation, "_is_waited_for", lambda *_: True)
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED))
    (slurm_job_id,) = site.direct.jobs
    site.direct.start(slurm_job_id)
    site.run_until(lambda: site.state().started is not None)
    site.direct.end(slurm_job_id, "FAILED")
    begun = site.clock.monotonic()
    site.run_to_the_end()
    assert site.state().verdict.code == "script_failed"
    assert site.clock.monotonic() - begun <= 30


def test_a_cancel_ends_the_wait_for_a_late_word(site):
    (job,) = running(site)
    site.cluster.end(site.state(job).slurm_job_id, "COMPLETED")
    site.run_for(30)
    assert site.state(job).verdict is None
    site.revoked.add(job)
    begun = site.clock.monotonic()
    site.run_to_the_end(steps_slurm=False)
    assert site.shown(job).status == JobStatus.CANCELED
    assert site.clock.monotonic() - begun < 20


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


@pytest.mark.parametrize("is_id_of_another", [True, False])
@pytest.mark.fault("slurmctld lost an acknowledged job and gave its id out again", phases=("running",))
def test_a_job_that_slurm_lost_and_then_ended_is_run_again(tmp_path, is_id_of_another):
    """Seen with 22.05.8: the controller crashes, gives the id to the next job, and the node ends what runs under it."""
    site = Site(tmp_path, retries=RetryRules())
    running(site)
    first = site.state()
    site.cluster.default_program = FakeProgram()
    site.cluster.finish(first.slurm_job_id, cause="TERM", exit_code=143)
    if is_id_of_another:
        site.clock.advance(100.0)
        site.cluster.crash(first.slurm_job_id)
        site.cluster.submit(Submission("gw-another", site.runs.path("x") / "s", site.runs.path("x") / "o"))
    else:
        site.cluster.forget(first.slurm_job_id)
    site.run_until(lambda: site.state().token not in ("", first.token), seconds=60, steps_slurm=False)
    site.cluster.jobs.pop(first.slurm_job_id, None)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert f"Slurm job {first.slurm_job_id} was lost by Slurm" in "".join(site.shown().log)
    assert site.calls("submit")[-1] == site.state().token


def test_a_job_that_was_ended_from_outside_long_ago_is_not_run_again(tmp_path):
    """By an administrator, perhaps: Slurm remembers that for a while only."""
    site = Site(tmp_path, retries=RetryRules())
    running(site)
    number = site.state().slurm_job_id
    site.cluster.finish(number, cause="TERM", exit_code=143)
    site.cluster.forget(number)
    site.clock.advance(100.0)
    site.run_to_the_end()
    assert (site.shown().status, site.state().verdict.code) == (ERROR, "ended_by_signal")
    assert len(site.calls("submit")) == 1


def test_a_job_that_slurm_loses_again_and_again_says_so(tmp_path):
    site = Site(tmp_path, retries=RetryRules(infrastructure=1))
    running(site)
    for attempt in (1, 2):
        site.run_until(
            lambda attempt=attempt: site.state().attempt == attempt and site.state().started is not None
        )
        number = site.state().slurm_job_id
        site.cluster.finish(number, cause="TERM", exit_code=143)
        site.cluster.forget(number)
    site.run_to_the_end()
    verdict = site.state().verdict
    assert (site.shown().status, verdict.code) == (ERROR, "slurm_lost")
    assert "That was try 2. Before it: Slurm job 101 was lost by Slurm" in verdict.sentence
