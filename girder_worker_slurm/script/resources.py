"""A container's wishes for memory, processors and GPUs, and the sbatch options of the site → those of one job. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_slurm.options.catalogue import long_name
from girder_worker_slurm.options.values import memory_mib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from girder_worker_singularity.run.docker_options import ResourceWishes

Options = tuple[tuple[str, str], ...]

#: Stands in a value of the GPU options for how many are wanted.
GPU_COUNT = "{gpus}"
USUAL_GPU_OPTIONS = {"gres": f"gpu:{GPU_COUNT}"}
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
    girder_gpu_options: Mapping[str, str] | None = None,
) -> JobOptions:
    """The site's options, raised to what is wished for, never lowered.

    `head` are the `#SBATCH` lines of the site's script, over which the command line wins. `gpu_options` are added if
    GPUs are wished for; they replace options of the same name. Where there are none the usual one is added, unless the
    site's options ask for GPUs already. `girder_gpu_options` win over all of these.
    """
    over = (girder_gpu_options or {}) if wishes.gpus else {}
    said = {**head_options(head), **{long_name(name): value for name, value in site}}
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
    if wishes.gpus and not gpu_options and _asks_for_gpus(said) and "gres" not in over:
        unmet += [f"{wishes.gpus} GPUs"] if wishes.gpus > 1 else []
    elif wishes.gpus:
        for name, value in (gpu_options or USUAL_GPU_OPTIONS).items():
            wanted[long_name(name)] = value.replace(GPU_COUNT, str(wishes.gpus))
    if "gres" in over:
        wanted = {name: value for name, value in wanted.items() if not name.startswith("gpus")}
    wanted |= {name: value.replace(GPU_COUNT, str(wishes.gpus)) for name, value in over.items()}
    kept = tuple((name, value) for name, value in site if long_name(name) not in wanted)
    return JobOptions((*kept, *wanted.items()), tuple(unmet))


def fixed_gpu_options(gpu_options: Mapping[str, str]) -> frozenset[str]:
    """The long names of those that a job with GPUs gets however many it wants: partition, account, a time."""
    return frozenset(long_name(name) for name, value in gpu_options.items() if GPU_COUNT not in value)


def head_options(head: Sequence[str]) -> dict[str, str]:
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
                found[long_name(word[1])] = word[2:] or value
    return found


def _asks_for_gpus(said: Mapping[str, str]) -> bool:
    return "gpu" in said.get("gres", "") or any(name.startswith("gpus") for name in said)


def _memory_mib(value: str | None) -> float:
    """What the site gives already; what cannot be read is more than anybody wishes for."""
    try:
        return 0 if value is None else memory_mib(value)
    except ValueError:
        return math.inf


def _whole(value: str | None) -> int:
    return int(value) if value is not None and value.strip().isdigit() else 0
