"""Whether a job that the infrastructure ended is run again, where, and what is said about it. Pure.

What the analysis did itself, its exit code, its use of memory and time, is never tried again: it would only fail anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from girder_worker_slurm.options.catalogue import long_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from girder_worker_slurm.job.state import EarlierAttempt, JobState, Verdict

_PREEMPTED = "preempted"
#: Codes of verdicts for which the job is not to blame, and what is said of an attempt that ended so.
_WHAT_HAPPENED = {
    "node_fail": "was lost because its node failed",
    "boot_fail": "could not start because its node did not boot",
    "launch_failed": "could not be launched",
    "slurm_lost": "was lost by Slurm",
    "requeued": "was put back into the queue while it ran",
    _PREEMPTED: "was preempted by a job of higher priority",
}
#: Of these the node is to blame. One that was wanted for another job is as good as any.
_NODE_IS_TO_BLAME = ("node_fail", "boot_fail", "launch_failed")
_HOSTLIST = re.compile(r"[A-Za-z0-9._,\[\]-]+")


@dataclass(frozen=True)
class RetryRules:
    """How often a job is run again after the infrastructure failed it, and after it was preempted."""

    infrastructure: int = 2
    preemption: int = 10


def is_tried_again(state: JobState, verdict: Verdict, rules: RetryRules) -> bool:
    """Whether the job gets another attempt instead of this verdict."""
    if state.cancel or state.cluster or verdict.code not in _WHAT_HAPPENED:
        return False
    is_preempted = verdict.code == _PREEMPTED
    used = sum(1 for earlier in state.earlier if (earlier.code == _PREEMPTED) is is_preempted)
    return used < (rules.preemption if is_preempted else rules.infrastructure)


def retry_sentence(state: JobState) -> str:
    """What the job's log says once its last attempt is over and another one is begun."""
    last = state.earlier[-1]
    elsewhere = f", not on {last.nodes} if there are other nodes for it" if _blamed(last) else ""
    return f"Try {len(state.earlier)}: {_told(last)}. It is submitted anew{elsewhere}."


def with_earlier(state: JobState, verdict: Verdict) -> Verdict:
    """The verdict of the last of several attempts, which names those before it."""
    if not state.earlier or verdict.code not in _WHAT_HAPPENED:
        return verdict
    before = "; ".join(_told(earlier) for earlier in state.earlier)
    tries = len(state.earlier) + 1
    return replace(verdict, sentence=f"{verdict.sentence} That was try {tries}. Before it: {before}.")


def avoided_nodes(state: JobState) -> tuple[str, ...]:
    """The nodes that failed earlier attempts, as Slurm writes them, each once."""
    return tuple(dict.fromkeys(earlier.nodes for earlier in state.earlier if _blamed(earlier)))


def options_avoiding(
    options: Sequence[tuple[str, str]], nodes: Sequence[str], head: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """The sbatch options with these nodes excluded besides those that are excluded already.

    `head` are the options in the script's own head, by their long names. Unchanged where the nodes of the job were
    named: whoever did so wants these.
    """
    said = {**head, **{long_name(name): value for name, value in options}}
    if not nodes or "nodelist" in said or "nodefile" in said:
        return tuple(options)
    excluded = ",".join(filter(None, (said.get("exclude", ""), *nodes)))
    kept = tuple((name, value) for name, value in options if long_name(name) != "exclude")
    return (*kept, ("exclude", excluded))


def _blamed(earlier: EarlierAttempt) -> bool:
    return earlier.code in _NODE_IS_TO_BLAME and _HOSTLIST.fullmatch(earlier.nodes) is not None


def _told(earlier: EarlierAttempt) -> str:
    where = f" on {earlier.nodes}" if earlier.nodes else ""
    return f"Slurm job {earlier.slurm_job_id} {_WHAT_HAPPENED.get(earlier.code, 'ended')}{where}"
