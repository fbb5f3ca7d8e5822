"""The shape of a job, said as `cpus`, `tasks` and `shape` instead of sbatch's own options. Pure.

`single` is one task with all processors, `distributed` one task for each of them, with its share of the memory.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from girder_worker_slurm.options.catalogue import DISTRIBUTED, OVERLAY, SHAPE_NAMES, SINGLE
from girder_worker_slurm.options.layers import ChosenOption
from girder_worker_slurm.options.values import memory_mib, nodes

if TYPE_CHECKING:
    from collections.abc import Sequence


def shaped(chosen: Sequence[ChosenOption]) -> tuple[ChosenOption, ...]:
    """The options in sbatch's own terms; they stay as they are if no shape is said.

    What is said in sbatch's terms beside it counts: `cpus = 8` with `ntasks = 2` is four processors for each.
    """
    said = {option.name: option for option in chosen}
    if not SHAPE_NAMES & said.keys():
        return tuple(chosen)
    cpus, tasks, shape = said.get("cpus"), said.get("tasks"), said.get("shape")
    is_distributed = shape is not None and shape.value == DISTRIBUTED
    source = tasks or (cpus if is_distributed else shape)
    made: list[ChosenOption] = []
    if source is not None and not {"ntasks", "ntasks-per-node"} & said.keys():
        made.append(replace(source, name="ntasks", value="1" if source is shape else source.value))
    number = _whole(said.get("ntasks") or (made[0] if made else None))
    if "ntasks-per-node" in said and "ntasks" not in said:
        number = _whole(said["ntasks-per-node"]) * max(
            1, nodes(said["nodes"].value if "nodes" in said else "")
        )
    per_task = math.ceil(_whole(cpus) / number) if cpus is not None else 0
    if cpus is not None and "cpus-per-task" not in said:
        made.append(replace(cpus, name="cpus-per-task", value=str(per_task)))
    elif is_distributed and shape is not None and "cpus-per-task" not in said:
        made.append(replace(shape, name="cpus-per-task", value="1"))
    processors = _whole(cpus) if cpus is not None else number
    rest = [
        _of_each_processor(option, processors) if is_distributed and option.name == "mem" else option
        for option in chosen
        if option.name not in SHAPE_NAMES
    ]
    return (*rest, *made)


def plain_options(options: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Options of the configuration in sbatch's own terms."""
    chosen = shaped([ChosenOption(name, value, "") for name, value in options])
    return tuple((option.name, option.value) for option in chosen if option.name != OVERLAY)


def _of_each_processor(option: ChosenOption, processors: int) -> ChosenOption:
    try:
        mib = memory_mib(option.value)
    except ValueError:  # the site's own way of writing it
        return option
    if processors < 2 or math.isinf(mib):
        return option
    return replace(option, name="mem-per-cpu", value=f"{math.ceil(mib / processors)}M")


def _whole(option: ChosenOption | None) -> int:
    text = option.value if option is not None else ""
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else 1


__all__ = ["DISTRIBUTED", "SINGLE", "plain_options", "shaped"]
