"""What a cluster's partitions give to a job that does not say, and what that means for its options. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_slurm.options.layers import ChosenOption
from girder_worker_slurm.options.values import minutes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_MEGABYTES = {"M": 1.0, "G": 1024.0, "T": 1024.0**2, "K": 1 / 1024, "": 1.0, "P": 1024.0**3}


@dataclass(frozen=True)
class Partition:
    """One partition, as the controller describes it."""

    name: str
    is_default: bool = False
    #: What a job gets that names no time, and the most that one may name; infinite without a limit.
    default_minutes: float = math.inf
    most_minutes: float = math.inf
    #: Memory of a node on average, as slurm.conf says it (RealMemory); None if that cannot be seen.
    node_memory_mib: float | None = None

    @property
    def counts_memory(self) -> bool:
        """Whether slurm.conf says how much memory the nodes have. Without a word about it each has 1 MB for Slurm."""
        return self.node_memory_mib is None or self.node_memory_mib > 1


def parse_partitions(listing: str) -> dict[str, Partition]:
    """The partitions in the answer of `scontrol --oneliner show partition`."""
    found = {}
    for line in listing.splitlines():
        fields = dict(re.findall(r"(?:^| )([A-Za-z]+)=(\S*)", line))
        if "PartitionName" not in fields:
            continue
        most = _minutes(fields.get("MaxTime", ""))
        default = fields.get("DefaultTime", "NONE")
        found[fields["PartitionName"]] = Partition(
            fields["PartitionName"],
            is_default=fields.get("Default") == "YES",
            default_minutes=most if default == "NONE" else _minutes(default),
            most_minutes=most,
            node_memory_mib=_node_memory(fields),
        )
    return found


def used_partitions(
    said: Mapping[str, str], partitions: Mapping[str, Partition]
) -> tuple[Partition | None, ...]:
    """Those that a job with these options may run in; None stands for one that is not known."""
    named = [name for name in said.get("partition", "").split(",") if name]
    if named:
        return tuple(partitions.get(name) for name in named)
    return tuple(found for found in partitions.values() if found.is_default) or (None,)


def time_within(limit_minutes: float | None, used: Sequence[Partition | None]) -> ChosenOption | None:
    """The time for a job that names none, if its partitions would give it more than the site's limit."""
    given = max((math.inf if found is None else found.default_minutes for found in used), default=math.inf)
    if limit_minutes is None or given <= limit_minutes:
        return None
    most = max((math.inf if found is None else found.most_minutes for found in used), default=math.inf)
    return ChosenOption("time", str(max(1, math.floor(min(limit_minutes, most)))), "[slurm.limits] time")


def without_memory(
    chosen: Sequence[ChosenOption], used: Sequence[Partition | None]
) -> tuple[tuple[ChosenOption, ...], tuple[str, ...]]:
    """The options without those of memory where Slurm knows of none and would refuse the job; and what was left out."""
    if any(found is None or found.counts_memory for found in used):
        return tuple(chosen), ()
    left_out = tuple(f"{option.name}={option.value}" for option in chosen if option.name in _MEMORY)
    return tuple(option for option in chosen if option.name not in _MEMORY), left_out


def _minutes(text: str) -> float:
    found = minutes(text)
    return math.inf if found is None else found


def _node_memory(fields: Mapping[str, str]) -> float | None:
    memory = re.search(r"(?:^|,)mem=([0-9]{1,15}(?:\.[0-9]{1,6})?)([KMGTP]?)(?:,|$)", fields.get("TRES", ""))
    nodes = fields.get("TotalNodes", "")
    if memory is None or not re.fullmatch(r"[0-9]{1,9}", nodes) or int(nodes) == 0:
        return None
    return float(memory[1]) * _MEGABYTES[memory[2]] / int(nodes)
