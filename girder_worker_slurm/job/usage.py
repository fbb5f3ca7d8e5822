"""What a job used of what it was given, from its own events. Pure.

Memory is known where the node's control groups count it, processor time everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_slurm.cluster.slurm_accounting import AccountedUsage, UsageSoFar
    from girder_worker_slurm.job.state import JobState

_TIME = re.compile(r"([0-9]{1,9})m([0-9]{1,2})[.,]([0-9]{1,6})s")
#: What Slurm's accounting said, in the record of a job that has ended.
ACCOUNTED_FILE = "accounted.json"
_MIB = 1024**2
_MOST = 10**18
_GIB_IN_MIB = 1024


@dataclass(frozen=True)
class Usage:
    """None is what is not known."""

    node: str
    wait_seconds: float | None
    """From the submission to the start, in Slurm's queue."""
    run_seconds: float | None
    cpu_seconds: float | None
    """Processor time of all processes, user and system."""
    cpus: int | None
    """Processors that the job was given on its node."""
    memory_peak_mib: float | None
    memory_mib: int | None
    """Memory that it was given on its node."""

    def sentence(self) -> str:
        """What it used, in words for who asked for it; empty if it did not run."""
        if self.run_seconds is None:
            return ""
        parts = []
        if self.memory_peak_mib is not None:
            asked = f" of {_memory(self.memory_mib)}" if self.memory_mib else ""
            parts.append(f"{_memory(self.memory_peak_mib)}{asked} of memory")
        if self.cpu_seconds is not None and self.run_seconds >= 1:
            busy = self.cpu_seconds / self.run_seconds
            asked = f" of {self.cpus}" if self.cpus else ""
            parts.append(f"{busy:.1f}{asked} processors")
        used = f"Used {' and '.join(parts)}; ran" if parts else "Ran"
        waited = (
            f", after {duration_text(self.wait_seconds)} in the queue"
            if self.wait_seconds is not None
            else ""
        )
        return f"{used} {duration_text(self.run_seconds)}{f' on {self.node}' if self.node else ''}{waited}."


def usage_of(state: JobState) -> Usage | None:
    """What the job's events say; None if it did not start, or has left no word about its end."""
    started, ended = state.started, state.ended
    if started is None or ended is None:
        return None
    begun = _number(started, "at")
    peak = _number(ended, "memory_peak_bytes")
    given_cpus, given_memory = _number(started, "cpus"), _number(started, "memory_mib")
    return Usage(
        node=str(ended.get("node") or started.get("node") or ""),
        wait_seconds=max(0.0, begun - state.submitted_at) if begun and state.submitted_at else None,
        run_seconds=_number(ended, "seconds"),
        cpu_seconds=cpu_seconds(str(ended.get("times", ""))),
        cpus=None if given_cpus is None else int(given_cpus),
        memory_peak_mib=None if peak is None else peak / _MIB,
        memory_mib=None if given_memory is None else int(given_memory),
    )


def accounted_sentence(usage: AccountedUsage) -> str:
    """What a job used by Slurm's accounting, in words."""
    parts = []
    if usage.memory_peak_mib is not None:
        parts.append(f"{_memory(usage.memory_peak_mib)} of memory at most")
    if usage.cpu_seconds is not None:
        parts.append(f"{duration_text(usage.cpu_seconds)} of processor time")
    used = f"used {' and '.join(parts)}; ran" if parts else "ran"
    how_long = f" {duration_text(usage.run_seconds)}" if usage.run_seconds is not None else ""
    return f"By Slurm's accounts it {used}{how_long}{f' on {usage.nodes}' if usage.nodes else ''}."


def sentence_so_far(usage: UsageSoFar) -> str:
    """What a job that runs has used by now, in words."""
    parts = []
    if usage.memory_peak_mib is not None:
        parts.append(f"{_memory(usage.memory_peak_mib)} of memory at most")
    if usage.cpu_seconds is not None:
        parts.append(f"{duration_text(usage.cpu_seconds)} of processor time")
    return " and ".join(parts)


def cpu_seconds(times: str) -> float | None:
    """The sum of what bash's `times` prints of a shell's children, `1m2.345s 0m0.678s`; None if it is not that."""
    found = [_TIME.fullmatch(word) for word in times.split()]
    if len(found) != 2 or None in found:
        return None
    return sum(int(m[1]) * 60 + int(m[2]) + float(f"0.{m[3]}") for m in found if m is not None)


def _number(event: Mapping[str, Any], name: str) -> float | None:
    value = event.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    # JSON has numbers that are no amount of anything, some of which no float can be.
    return float(value) if -_MOST < value < _MOST else None


def _memory(mib: float | None) -> str:
    if mib is None:
        return ""
    return f"{mib / _GIB_IN_MIB:.1f} GiB" if mib >= _GIB_IN_MIB else f"{mib:.0f} MiB"


def duration_text(seconds: float) -> str:
    """So many seconds, for people."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
