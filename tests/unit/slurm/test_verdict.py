"""Every combination of what the job, Slurm and Girder say about an end."""

from __future__ import annotations

import itertools

import pytest

from girder_worker_slurm.cluster.interface import JobDetail, QueueRow, SlurmJobId
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES, LIVE_STATES
from girder_worker_slurm.job.state import JobState, Outcome, Phase, Verdict, fold
from girder_worker_slurm.job.verdict import (
    DELETED,
    cancelled,
    container_failed,
    final_outcome,
    hopeless_wait,
    never_started,
    vanished,
    verdict_of_event,
    verdict_of_last_word,
    verdict_of_slurm,
    waiting_text,
)

#: All words of the sections JOB STATE CODES of squeue(1) and sacct(1), Slurm 22.05 to 26.05.
MANUAL = """
    BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY
    PENDING PREEMPTED RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING
    SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT POWER_UP_NODE RECONFIG_FAIL UPDATE_DB
""".split()


def ended(**fields):
    return {"token": "gw-1", "exit_code": 0, "cause": "exit", "node": "n1", **fields}


def state(end=None, *, cancel="", **fields):
    return JobState(
        phase=Phase.SUBMITTED, token="gw-1", slurm_job_id="11", ended=end, cancel=cancel, **fields
    )


def detail(word, **fields):
    values = {"reason": "None", "exit_code": 0, "signal": 0, "nodes": "n1", "restarts": 0, **fields}
    return JobDetail(slurm_job_id=SlurmJobId("11"), token="gw-1", state=word, **values)


@pytest.mark.parametrize("word", MANUAL)
def test_every_state_of_the_manual_is_either_an_end_or_not(word):
    assert (word in FINAL_STATES) != (word in LIVE_STATES)


def test_no_state_is_known_beyond_the_manual():
    assert set(MANUAL) == FINAL_STATES | LIVE_STATES


@pytest.mark.parametrize("word", [*sorted(LIVE_STATES), "SOMETHING_NEW", ""])
@pytest.mark.parametrize("end", [None, ended()])
@pytest.mark.parametrize("cancel", ["", "in Girder"])
def test_a_state_that_is_no_end_gives_no_verdict(word, end, cancel):
    assert verdict_of_slurm(state(end, cancel=cancel), detail(word)) is None


ENDS = {
    "no word": None,
    "ended with 0": ended(),
    "ended with 3": ended(exit_code=3),
    "killed": ended(exit_code=137, signal=9),
    "stopped by TERM": ended(exit_code=143, signal=15, cause="TERM"),
    "out of memory": ended(exit_code=137, oom_kills=1, memory_peak_bytes=2**30),
    "no number": ended(exit_code=None),
}


@pytest.mark.parametrize(("word", "end"), list(itertools.product(sorted(FINAL_STATES), ENDS)))
def test_an_end_in_slurm_is_success_only_with_the_jobs_own_word(word, end):
    verdict = verdict_of_slurm(state(ENDS[end]), detail(word))
    if word == "COMPLETED" and end == "ended with 0":
        assert verdict.outcome is Outcome.SUCCESS
    elif word == "FAILED" and end == "ended with 0":
        assert verdict.outcome in (Outcome.SUCCESS, Outcome.ERROR)
    else:
        assert verdict.outcome is Outcome.ERROR
        assert "11" in verdict.sentence


@pytest.mark.parametrize(("word", "end"), list(itertools.product(sorted(FINAL_STATES), ENDS)))
def test_a_cancelled_job_ends_cancelled_however_slurm_ended_it(word, end):
    assert verdict_of_slurm(state(ENDS[end], cancel="in Girder"), detail(word)).outcome is Outcome.CANCELED


@pytest.mark.parametrize(
    ("word", "end", "code"),
    [
        ("TIMEOUT", "stopped by TERM", "timeout"),
        ("TIMEOUT", "no word", "timeout"),
        ("OUT_OF_MEMORY", "no word", "out_of_memory"),
        ("OUT_OF_MEMORY", "killed", "out_of_memory"),
        ("FAILED", "out of memory", "out_of_memory"),
        ("CANCELLED", "stopped by TERM", "cancelled_in_slurm"),
        ("NODE_FAIL", "no word", "node_fail"),
        ("BOOT_FAIL", "no word", "boot_fail"),
        ("PREEMPTED", "stopped by TERM", "preempted"),
        ("DEADLINE", "no word", "deadline"),
        ("LAUNCH_FAILED", "no word", "launch_failed"),
        ("REVOKED", "no word", "revoked"),
        ("COMPLETED", "no word", "no_result"),
        ("FAILED", "no word", "script_failed"),
        ("FAILED", "ended with 3", "failed"),
        ("FAILED", "killed", "failed"),
        ("COMPLETED", "ended with 0", "completed"),
    ],
)
def test_the_reason_of_an_end_is_told(word, end, code):
    assert verdict_of_slurm(state(ENDS[end]), detail(word)).code == code


def test_the_memory_that_was_used_is_told():
    assert "1024 MiB" in verdict_of_slurm(state(ENDS["out of memory"]), detail("FAILED")).sentence


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ("no word", None),
        ("ended with 0", Outcome.SUCCESS),
        ("ended with 3", Outcome.ERROR),
        ("killed", None),
        ("stopped by TERM", None),
        ("out of memory", None),
        ("no number", Outcome.ERROR),
    ],
)
def test_the_jobs_own_word_decides_alone_only_when_it_is_clear(end, outcome):
    verdict = verdict_of_event(state(ENDS[end]))
    assert (verdict and verdict.outcome) == outcome


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("ended with 0", "completed"),
        ("ended with 3", "failed"),
        ("stopped by TERM", "ended_by_signal"),
        ("out of memory", "out_of_memory"),
        ("no number", "failed"),
    ],
)
def test_the_jobs_own_word_decides_when_slurm_has_forgotten_the_job(end, code):
    assert verdict_of_last_word(state(ENDS[end])).code == code


def test_no_word_at_all_is_no_success_even_when_slurm_has_forgotten_the_job():
    assert verdict_of_last_word(state(None)).outcome is Outcome.ERROR


@pytest.mark.parametrize(
    ("code", "words"),
    [(139, "SIGSEGV"), (137, "SIGKILL"), (159, "signal 31"), (255, "255"), (2, "exit code 2")],
)
def test_how_an_analysis_failed_is_told_in_words(code, words):
    assert words in container_failed(state(ended(exit_code=code))).sentence


def test_a_job_that_vanished_or_never_started_is_an_error_or_was_cancelled():
    assert vanished(state(started={"node": "n7"})).code == "vanished"
    assert "n7" in vanished(state(started={"node": "n7"})).sentence
    assert never_started(state(), 3).code == "not_kept"
    assert vanished(state(cancel="in Girder")).outcome is Outcome.CANCELED
    assert never_started(state(cancel="in Girder"), 3).outcome is Outcome.CANCELED


GOOD = Verdict(Outcome.SUCCESS, "completed", "Good.")


def test_a_cancel_that_was_seen_before_the_report_wins():
    assert final_outcome(state(cancel="in Girder", verdict=GOOD)).outcome is Outcome.CANCELED
    assert final_outcome(state(verdict=GOOD)) is GOOD


def test_a_deleted_job_is_abandoned():
    assert final_outcome(state(cancel=DELETED, verdict=GOOD)).outcome is Outcome.ABANDONED


def test_there_is_no_outcome_before_a_verdict():
    with pytest.raises(ValueError, match="no verdict"):
        final_outcome(state())


def test_outputs_that_were_uploaded_before_a_cancel_are_told():
    assert "1 output file had" in cancelled(state(cancel="x", uploaded=frozenset({"a"}))).sentence
    assert "2 output files had" in cancelled(state(cancel="x", uploaded=frozenset({"a", "b"}))).sentence


def row(word, reason):
    return QueueRow(SlurmJobId("11"), word, reason, "gw-1")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("launch failed requeued held", "launch_failed"),
        ("(JobHoldMaxRequeue)", "launch_failed"),
        ("BadConstraints", "held"),
        ("DependencyNeverSatisfied", "held"),
    ],
)
def test_a_wait_that_can_never_end_is_an_end(reason, code):
    assert hopeless_wait(row("PENDING", reason)).code == code


@pytest.mark.parametrize(
    ("word", "reason"),
    [("PENDING", "Priority"), ("PENDING", "JobHeldAdmin"), ("RUNNING", "BadConstraints"), ("PENDING", "")],
)
def test_every_other_wait_goes_on(word, reason):
    assert hopeless_wait(row(word, reason)) is None


def test_people_see_state_and_reason():
    assert waiting_text("PENDING", "Priority") == "Slurm: PENDING (Priority)"
    assert waiting_text("RUNNING", "None") == "Slurm: RUNNING"


def test_a_last_word_after_a_signal_is_no_success_even_with_exit_code_nought():
    """Seen: a job that traps TERM and ends with 0 was cancelled, and Slurm had forgotten it when it was asked."""
    state = fold(
        [
            {"event": "attempt", "number": 1, "token": "gw-1", "nonce": "n"},
            {"event": "submitted", "slurm_job_id": "7"},
            {"event": "ended", "token": "gw-1", "exit_code": 0, "cause": "TERM"},
        ]
    )
    assert verdict_of_last_word(state).outcome is Outcome.ERROR
