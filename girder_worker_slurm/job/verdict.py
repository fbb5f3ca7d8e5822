"""How a job ended, from what the job itself, Slurm and Girder say. Pure.

Success needs positive evidence: the script's own word that the container ended with 0. A scientist reads the
sentences; an administrator acts on the Slurm job id in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.job.state import DELETED, JobState, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_slurm.cluster.interface import JobDetail, QueueRow

#: Reasons of a pending job that will never run by itself (squeue(1), JOB REASON CODES).
_HOPELESS_REASONS = {
    "BadConstraints": "no node has what it asks for",
    "DependencyNeverSatisfied": "a job that it depends on failed",
}
#: The same, where the job is not to blame.
_FAILED_LAUNCHES = {
    "launch failed requeued held": "the node could not start it, and Slurm holds it now",
    "JobHoldMaxRequeue": "it was started and requeued too often, and Slurm holds it now",
    "JobHeldMaxRequeue": "it was started and requeued too often, and Slurm holds it now",
}

#: The cause that stands for a script which could not take its claim.
UNWRITABLE = "unwritable"
#: The cause that stands for a line of the site which ended the script before the container was started.
PRERUN = "prerun"
#: The cause that stands for a path of the site that is not on the node.
BIND = "bind"
#: Signals that ask a program to end; others, such as USR1, warn it of something.
_ENDING_SIGNALS = ("TERM", "INT", "XCPU", "HUP")

_SIGNALS = {
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    15: "SIGTERM",
}


def final_outcome(state: JobState) -> Verdict:
    """The verdict that Girder gets: a cancel that was seen before the end is reported wins over it."""
    if state.cancel == DELETED:
        return Verdict(Outcome.ABANDONED, "deleted", "The Girder job was deleted.")
    if state.verdict is not None and state.verdict.outcome in (Outcome.CANCELED, Outcome.ABANDONED):
        return state.verdict
    if state.cancel:
        return cancelled(state)
    if state.verdict is None:
        msg = "The job has no verdict yet."
        raise ValueError(msg)
    return state.verdict


def owed_to_girder(state: JobState) -> str:
    """What Girder did not take of an ended job, in words; empty if it has all."""
    if state.owes_outputs:
        return "outputs, and that it ended well"
    return "how it ended" if state.is_untold else ""


def cancelled(state: JobState) -> Verdict:
    """The end of a job that was cancelled in Girder."""
    where = f" Slurm job {state.slurm_job_id} was cancelled." if state.slurm_job_id else ""
    kept = len(state.uploaded)
    left = (
        f" {kept} output file{'s' if kept != 1 else ''} had been uploaded before and stay in Girder."
        if kept
        else ""
    )
    return Verdict(Outcome.CANCELED, "cancelled", f"Cancelled ({state.cancel}).{where}{left}")


def verdict_of_event(state: JobState) -> Verdict | None:
    """The verdict that the job's own last word allows; None when Slurm has to be asked as well."""
    ended = state.ended
    if ended is not None and ended.get("cause") == PRERUN and not state.cancel:
        return _ended_before_container(state)
    if ended is not None and ended.get("cause") == BIND and not state.cancel:
        return _site_data_missing(state)
    if ended is None or ended.get("cause") != "exit" or _oom_kills(ended):
        return None
    code = _code(ended)
    if code == 0:
        return Verdict(Outcome.SUCCESS, "completed", f"Slurm job {state.slurm_job_id} completed{_on(ended)}.")
    # 137 and 125 are what an exceeded memory limit looks like from inside.
    return None if code in (125, 137) else container_failed(state)


def verdict_of_last_word(state: JobState, *, is_lost: bool = False) -> Verdict:
    """The verdict from the job's own word alone, when Slurm has forgotten the job.

    `is_lost`: sooner than it forgets jobs that it has ended itself.
    """
    ended = state.ended or {}
    if state.cancel:
        return cancelled(state)
    if _oom_kills(ended):
        return _slurm(
            "out_of_memory",
            f"Slurm job {state.slurm_job_id} used more memory than it was given{_peak(ended)}.",
        )
    if ended.get("cause") == UNWRITABLE:
        return _unwritable(state.slurm_job_id, ended)
    if ended.get("cause") == PRERUN:
        return _ended_before_container(state)
    if ended.get("cause") == BIND:
        return _site_data_missing(state)
    if _was_asked_to_end(ended) and is_lost:
        return _slurm(
            "slurm_lost",
            f"Slurm lost job {state.slurm_job_id} while it ran{_on(ended)}, most likely because its controller went down, and"
            f" then ended it as one that it does not know (SIG{ended.get('cause')}). Start the job again.",
        )
    if _was_asked_to_end(ended):
        return _slurm(
            "ended_by_signal",
            f"Slurm job {state.slurm_job_id} was ended from outside (SIG{ended.get('cause')}){_on(ended)}: at its time limit,"
            " by an administrator, or for another job. Slurm remembers no more about it.",
        )
    if _code(ended) == 0:
        return Verdict(Outcome.SUCCESS, "completed", f"Slurm job {state.slurm_job_id} completed{_on(ended)}.")
    return container_failed(state)


def container_failed(state: JobState) -> Verdict:
    """The analysis itself ended with an error."""
    ended = state.ended or {}
    code = _code(ended)
    if ended.get("begun") is False:
        return _not_begun(state)
    if 128 < code < 255:
        signal = _SIGNALS.get(code - 128, f"signal {code - 128}")
        how = f"was ended by {signal} (exit code {code})"
    elif code == 255:
        how = "could not be started, or ended with exit code 255"
    else:
        how = f"ended with exit code {code}"
    return Verdict(
        Outcome.ERROR,
        "failed",
        f"The analysis {how}{_on(ended)} (Slurm job {state.slurm_job_id}). The end of its log says more.",
    )


def verdict_of_slurm(state: JobState, detail: JobDetail) -> Verdict | None:
    """The verdict from Slurm's word together with the job's; None while Slurm has not ended the job."""
    if detail.state not in FINAL_STATES:
        return None
    if state.cancel:
        return cancelled(state)
    if _ran_before(state, detail):
        # What Slurm says of the job is the end of a later start, which the claim turned away.
        return requeued(state, detail.slurm_job_id)
    ended = state.ended
    job = f"Slurm job {detail.slurm_job_id}"
    where = f" on {detail.nodes}" if detail.nodes else ""
    if detail.state == "OUT_OF_MEMORY" or (ended is not None and _oom_kills(ended)):
        return _slurm(
            "out_of_memory",
            f"{job} used more memory than it was given{where}{_peak(ended)}. Ask for more memory (sbatch option `mem`)"
            " or analyse a smaller region.",
        )
    if detail.state == "TIMEOUT":
        limit = f" of {detail.time_limit}" if detail.time_limit else ""
        return _slurm(
            "timeout",
            f"{job} reached its time limit{limit}{where}. Ask for more time (sbatch option `time`).",
        )
    if detail.state == "CANCELLED":
        return _slurm(
            "cancelled_in_slurm",
            f"{job} was cancelled in Slurm{where}, not from Girder: by an administrator or by hand. Ask the cluster's"
            " administrators, or start the job again.",
        )
    if detail.state in _INFRASTRUCTURE:
        sentence = f"{job} {_INFRASTRUCTURE[detail.state]}{where}. Start the job again."
        return _slurm(detail.state.lower(), sentence, detail.nodes)
    if ended is not None and ended.get("cause") == UNWRITABLE:
        return _unwritable(detail.slurm_job_id, ended)
    if ended is not None and _was_asked_to_end(ended) and _code(ended) == 0:
        return _slurm(
            "ended_by_signal",
            f"{job} was asked to end from outside (SIG{ended.get('cause')}){where}, and the analysis ended with 0 then."
            " Whether it was complete is not known: its outputs are not taken. Start the job again.",
        )
    if ended is not None:
        return verdict_of_event(state) or (
            container_failed(state)
            if _code(ended) != 0
            else Verdict(Outcome.SUCCESS, "completed", f"{job} completed{where}.")
            if detail.state == "COMPLETED"
            else _slurm(
                "failed", f"{job} failed{where} although the analysis ended with 0 (Slurm: {detail.state})."
            )
        )
    if detail.state == "COMPLETED":
        return _slurm(
            "no_result",
            f"{job} ended{where} but left no word about the analysis. Perhaps the jobs directory was full or not"
            " visible there; what the script printed is in slurm.out of its run directory.",
        )
    how = f"signal {detail.signal}" if detail.signal else f"exit code {detail.exit_code}"
    return _slurm(
        "script_failed",
        f"{job} failed{where} before the analysis could report ({detail.state}, {how}, reason {detail.reason}). What the"
        " script printed is in slurm.out of its run directory.",
    )


def vanished(state: JobState) -> Verdict:
    """The job had started and Slurm knows nothing of it any more."""
    if state.cancel:
        return cancelled(state)
    started = state.started or {}
    return _slurm(
        "vanished",
        f"Slurm job {state.slurm_job_id} had started{_on(started)} and is gone from Slurm without a word about its end."
        " It is not started a second time by itself: start the job again.",
    )


def lost(state: JobState) -> Verdict:
    """The job had started, and Slurm has given its id to another job since."""
    if state.cancel:
        return cancelled(state)
    return _slurm(
        "slurm_lost",
        f"Slurm lost job {state.slurm_job_id} while it ran{_on(state.started or {})}, most likely because its controller went"
        " down: its number is another job's now, and it has not been heard of since. Start the job again.",
    )


def requeued(state: JobState, slurm_job_id: str) -> Verdict:
    """The job was put back into the queue while it ran."""
    if state.cancel:
        return cancelled(state)
    return _slurm(
        "requeued",
        f"Slurm job {slurm_job_id} was put back into the queue while it ran{_on(state.ended or state.started or {})}: by an"
        " administrator, for another job, or because its node failed. Start the job again.",
        str((state.ended or state.started or {}).get("node", "")),
    )


def launch_failed(detail: JobDetail) -> Verdict:
    """Slurm gave the job a node, and ended it before its script began."""
    if detail.state == "FAILED":
        return _slurm(
            "launch_failed",
            f"Slurm job {detail.slurm_job_id} could not be launched: {detail.nodes} could not start its script, most often"
            " because it cannot write into the jobs root (permissions, quota, a mount that is read-only). slurmd's log on"
            " the node says more. Ask the cluster's administrators.",
            detail.nodes,
        )
    return _slurm(
        "launch_failed",
        f"Slurm job {detail.slurm_job_id} could not be launched: Slurm cancelled it on {detail.nodes} before it could"
        " start. Most often the node's prolog or environment fails, which slurmd's log on the node explains; or somebody"
        " cancelled it. Ask the cluster's administrators.",
        detail.nodes,
    )


def never_started(state: JobState, attempts: int) -> Verdict:
    """The job disappeared from Slurm before it started, again and again."""
    if state.cancel:
        return cancelled(state)
    return _slurm(
        "not_kept",
        f"Slurm accepted the job {attempts} times and lost it each time before it started. Ask the cluster's administrators.",
    )


def hopeless_wait(row: QueueRow) -> Verdict | None:
    """The end of a pending job that Slurm will never start; None for every other job."""
    reason = row.reason.strip("()")
    why = _HOPELESS_REASONS.get(reason) or _FAILED_LAUNCHES.get(reason)
    if row.state not in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT") or why is None:
        return None
    sentence = f"Slurm job {row.slurm_job_id} cannot run: {why} (reason {row.reason}). Ask the cluster's administrators."
    if reason in _FAILED_LAUNCHES:
        return _slurm("launch_failed", sentence)
    return _slurm("held", sentence)


def waiting_text(state: str, reason: str) -> str:
    """What a person sees while the job is in the queue."""
    return f"Slurm: {state}" + (f" ({reason})" if reason and reason != "None" else "")


_INFRASTRUCTURE = {
    "NODE_FAIL": "was lost because its node failed",
    "BOOT_FAIL": "could not start because its node did not boot",
    "PREEMPTED": "was preempted by a job of higher priority",
    "DEADLINE": "could not end before its deadline",
    "LAUNCH_FAILED": "could not be launched on its node",
    "REVOKED": "was revoked by another cluster of the federation",
}


def _slurm(code: str, sentence: str, nodes: str = "") -> Verdict:
    return Verdict(Outcome.ERROR, code, sentence, nodes)


def _ran_before(state: JobState, detail: JobDetail) -> bool:
    """Whether Slurm has started the job again since it spoke."""
    word = state.ended or state.started
    restart = (word or {}).get("restart", 0)
    return word is not None and isinstance(restart, int) and detail.restarts > restart


def _was_asked_to_end(ended: Mapping[str, Any]) -> bool:
    return ended.get("cause") in _ENDING_SIGNALS


def _unwritable(slurm_job_id: str, ended: Mapping[str, Any]) -> Verdict:
    return _slurm(
        "script_failed",
        f"Slurm job {slurm_job_id} could not write into its run directory{_on(ended)}, so the analysis was not begun. Look"
        " at the jobs root on that node: permissions, quota, a mount that is read-only.",
    )


def _ended_before_container(state: JobState) -> Verdict:
    ended = state.ended or {}
    return _slurm(
        "prerun_failed",
        f"The site's commands before the container ended Slurm job {state.slurm_job_id} with exit code {_code(ended)}"
        f"{_on(ended)}; the analysis was not begun. The end of the log says more; ask the site's administrator.",
    )


def _not_begun(state: JobState) -> Verdict:
    """The container was not started: its overlay could not be made, or a signal came before it."""
    ended = state.ended or {}
    cause = ended.get("cause")
    why = f"exit code {_code(ended)}" if cause == "exit" else f"SIG{cause} came before that"
    return _slurm(
        "not_begun",
        f"The analysis was not begun: {why}{_on(ended)} (Slurm job {state.slurm_job_id}). The end of the log says more.",
    )


def _site_data_missing(state: JobState) -> Verdict:
    ended = state.ended or {}
    return _slurm(
        "site_data_missing",
        f"{ended.get('path', 'A path')}, which the site mounts into containers of this image, is not there{_on(ended)} (Slurm"
        f" job {state.slurm_job_id}); the analysis was not begun. Ask the site's administrator.",
    )


def _code(ended: Mapping[str, Any]) -> int:
    value = ended.get("exit_code")
    # A record without a number is no evidence of success.
    return value if isinstance(value, int) else 255


def _oom_kills(ended: Mapping[str, Any]) -> int:
    value = ended.get("oom_kills", 0)
    return value if isinstance(value, int) else 0


def _peak(ended: Mapping[str, Any] | None) -> str:
    peak = (ended or {}).get("memory_peak_bytes")
    return f" (at least {peak / 1024**2:.0f} MiB)" if isinstance(peak, int) and peak < 10**18 else ""


def _on(event: Mapping[str, Any]) -> str:
    return f" on {event['node']}" if event.get("node") else ""
