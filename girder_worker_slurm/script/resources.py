"""A container's wishes for memory, processors and GPUs, and the sbatch options of the site → those of one job. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from girder_worker_singularity.run.docker_options import ResourceWishes

Options = tuple[tuple[str, str], ...]

#: Stands in a value of the GPU options for how many are wanted.
GPU_COUNT = "{gpus}"
USUAL_GPU_OPTIONS = {"gres": f"gpu:{GPU_COUNT}"}
_LONG = {
    "A": "account", "C": "constraint", "G": "gpus", "c": "cpus-per-task", "n": "ntasks", "p": "partition", "q": "qos",
    "t": "time", "w": "nodelist",
}  # fmt: skip
_MEMORY = re.compile(r"([0-9]+)([KMGT]?)B?", re.IGNORECASE)
_MIB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_ANOTHER_WAY_TO_SAY_MEMORY = ("mem-per-cpu", "mem-per-gpu")
_ALL_OF_A_NODE = "exclusive"


@dataclass(frozen=True)
class JobOptions:
    """The sbatch options of one job."""

    options: Options
    #: Wishes that the site's own options do not leave room for, in the words of a log line.
    unmet: tuple[str, ...] = ()


def job_options(
    site: Sequence[tuple[str, str]],
    wishes: ResourceWishes,
    *,
    head: Sequence[str] = (),
    gpu_options: Mapping[str, str] | None = None,
) -> JobOptions:
    """The site's options, raised to what is wished for, never lowered.

    `head` are the `#SBATCH` lines of the site's script, over which the command line wins. `gpu_options` are added if
    GPUs are wished for; they replace options of the same name. Where there are none the usual one is added, unless the
    site's options ask for GPUs already.
    """
    said = {**_head_options(head), **{_long(name): value for name, value in site}}
    wanted: dict[str, str] = {}
    unmet = []
    if wishes.memory_mib:
        if any(name in said for name in _ANOTHER_WAY_TO_SAY_MEMORY):
            unmet.append(f"{wishes.memory_mib} MiB of memory")
        elif wishes.memory_mib > _memory_mib(said.get("mem")):
            wanted["mem"] = f"{wishes.memory_mib}M"
    if wishes.cpus and _ALL_OF_A_NODE not in said:
        tasks = _whole(said.get("ntasks")) or 1
        if wishes.cpus > tasks * (_whole(said.get("cpus-per-task")) or 1):
            wanted["cpus-per-task"] = str(math.ceil(wishes.cpus / tasks))
    if wishes.gpus and not gpu_options and _asks_for_gpus(said):
        unmet += [f"{wishes.gpus} GPUs"] if wishes.gpus > 1 else []
    elif wishes.gpus:
        for name, value in (gpu_options or USUAL_GPU_OPTIONS).items():
            wanted[_long(name)] = value.replace(GPU_COUNT, str(wishes.gpus))
    kept = tuple((name, value) for name, value in site if _long(name) not in wanted)
    return JobOptions((*kept, *wanted.items()), tuple(unmet))


def _long(name: str) -> str:
    return _LONG.get(name, name)


def _head_options(head: Sequence[str]) -> dict[str, str]:
    """The options of `#SBATCH` lines by their long names; the value of a flag is empty."""
    found: dict[str, str] = {}
    for line in head:
        words = line.removeprefix("#SBATCH").split(" #", 1)[0].split()
        for index, word in enumerate(words):
            following = words[index + 1] if index + 1 < len(words) else ""
            value = "" if following.startswith("-") else following
            if word.startswith("--"):
                name, equals, text = word[2:].partition("=")
                found[name] = text if equals else value
            elif word.startswith("-") and len(word) > 1:
                found[_long(word[1])] = word[2:] or value
    return found


def _asks_for_gpus(said: Mapping[str, str]) -> bool:
    return "gpu" in said.get("gres", "") or any(name.startswith("gpus") for name in said)


def _memory_mib(value: str | None) -> float:
    """What the site gives already; all of a node (`--mem=0`) is more than anybody wishes for."""
    if value is None:
        return 0
    match = _MEMORY.fullmatch(value.strip())
    if match is None or int(match[1]) == 0:
        return math.inf
    return int(match[1]) * _MIB[match[2].upper()]


def _whole(value: str | None) -> int:
    return int(value) if value is not None and value.strip().isdigit() else 0
