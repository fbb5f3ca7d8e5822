"""What Slurm's accounting says about jobs: of those that have ended sacct's, of one that runs sstat's. Command lines and answers. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES, first_word

if TYPE_CHECKING:
    from collections.abc import Sequence

_RUNNING_FIELDS = "JobID,NTasks,AveCPU,MaxRSS"
_FIELDS = "JobIDRaw,JobName,State,ElapsedRaw,TotalCPU,MaxRSS,NodeList"
_MIB = {"": 1 / 1024**2, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_SECONDS = re.compile(r"[0-9]{1,12}")
_MEMORY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([KMGT]?)")
_TIME = re.compile(r"(?:([0-9]{1,6})-)?(?:([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,6}(?:\.[0-9]{1,9})?)")
# Not "Problem talking to the database": that is a slurmdbd that is down, and may be back in a minute.
_ABSENT = re.compile(r"accounting storage is disabled", re.IGNORECASE)


@dataclass(frozen=True)
class AccountedUsage:
    """One job in the accounting; None is what is not known."""

    token: str
    nodes: str
    run_seconds: float | None
    cpu_seconds: float | None
    memory_peak_mib: float | None
    """The most that one process tree of one of its steps had, of all its nodes."""


def sacct_arguments(slurm_job_ids: Sequence[str]) -> list[str]:
    """Asks for these jobs and their steps."""
    if not slurm_job_ids or not all(re.fullmatch(r"[0-9]+", job_id) for job_id in slurm_job_ids):
        msg = f"{slurm_job_ids!r} are not Slurm job ids."
        raise ValueError(msg)
    return ["sacct", "--noheader", "--parsable2", f"--jobs={','.join(slurm_job_ids)}", f"--format={_FIELDS}"]


def parse_sacct(stdout: str) -> dict[str, AccountedUsage]:
    """The jobs that have ended, by id; a line that is none of ours (a banner) is passed over."""
    rows = _rows(stdout, _FIELDS)
    peaks: dict[str, float] = {}
    for job_id, *_, memory, _nodes in rows:
        peak = _mib(memory)
        if peak is not None:
            base = job_id.partition(".")[0]
            peaks[base] = max(peaks.get(base, 0.0), peak)
    return {
        job_id: AccountedUsage(
            token,
            nodes,
            float(elapsed) if _SECONDS.fullmatch(elapsed) else None,
            accounted_seconds(cpu),
            peaks.get(job_id),
        )
        for job_id, token, state, elapsed, cpu, _memory, nodes in rows
        if re.fullmatch(r"[0-9]+", job_id) and first_word(state) in FINAL_STATES
    }


@dataclass(frozen=True)
class UsageSoFar:
    """What a job that runs has used by now; None is what is not known."""

    cpu_seconds: float | None
    memory_peak_mib: float | None
    """The most that one process tree of one of its steps had."""


def sstat_arguments(slurm_job_id: str) -> list[str]:
    """Asks for all steps of a running job."""
    if not re.fullmatch(r"[0-9]+", slurm_job_id):
        msg = f"{slurm_job_id!r} is not a Slurm job id."
        raise ValueError(msg)
    head = ["sstat", "--noheader", "--parsable2", "--allsteps"]
    return [*head, f"--jobs={slurm_job_id}", f"--format={_RUNNING_FIELDS}"]


def parse_sstat(stdout: str, slurm_job_id: str) -> UsageSoFar | None:
    """What the steps of this job have used together; None if there is nothing about it, as before its first measurement."""
    seconds, peaks = [], []
    for step, tasks, cpu, memory in _rows(stdout, _RUNNING_FIELDS):
        if step.partition(".")[0] != slurm_job_id:
            continue  # a banner
        average = accounted_seconds(cpu)
        if average is not None and _SECONDS.fullmatch(tasks):
            seconds.append(average * int(tasks))
        peak = _mib(memory)
        if peak:
            peaks.append(peak)
    if not seconds and not peaks:
        return None
    return UsageSoFar(sum(seconds) if seconds else None, max(peaks, default=None))


def _rows(stdout: str, fields: str) -> list[list[str]]:
    return [line.split("|") for line in stdout.splitlines() if line.count("|") == fields.count(",")]


def _mib(memory: str) -> float | None:
    found = _MEMORY.fullmatch(memory)
    return None if found is None else float(found[1]) * _MIB[found[2]]


def accounted_seconds(text: str) -> float | None:
    """`[days-][hours:]minutes:seconds[.fraction]` in seconds; None if it is not that."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def is_absent(stderr: str) -> bool:
    """Whether sacct says that this cluster keeps no accounts."""
    return bool(_ABSENT.search(stderr))
