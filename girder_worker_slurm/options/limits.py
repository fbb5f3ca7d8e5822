"""How much one job may ask for. Pure."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.values import gpus_of, memory_mib, minutes, nodes, of_each_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from girder_worker_slurm.options.layers import ChosenOption

_NOTHING: Mapping[str, str] = MappingProxyType({})
KNOWN_LIMITS = ("time", "mem", "cpus", "gpus", "nodes")
#: Options that change how many tasks, processors, GPUs and how much memory there are.
_TASKS = frozenset({"ntasks", "ntasks-per-node", "nodes"})
_GPUS = frozenset(
    {
        "gres",
        "gpus",
        "gpus-per-node",
        "gpus-per-socket",
        "gpus-per-task",
        "tres-per-task",
        "sockets-per-node",
        "nodes",
    }
)
_GPUS_OF_NODE = ("gres", "gpus-per-node", "gpus-per-socket", "sockets-per-node")
#: Options for which Slurm may take several nodes, unless it is told how many.
_MAY_SPREAD = (_TASKS | _GPUS | {"ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket", "spread-job"}) - {
    "nodes"
}
#: Options that give a job whole nodes, and values of `exclusive` that do not.
_WHOLE_NODES = ("exclusive", "core-spec", "thread-spec")
_SHARED = ("user", "mcs")
#: Options that leave threads of cores idle, which are the job's all the same (seen: 22.05.8); and values that do not.
_OF_CORES = ("hint", "threads-per-core", "ntasks-per-core", "extra-node-info")
_WITH_ALL_THREADS = ("multithread",)
#: Of a core, on all but a few kinds of processors.
_THREADS = 2


@dataclass(frozen=True)
class Limits:
    """The most that a request may lead to; None is no limit."""

    time_minutes: float | None = None
    memory_mib: float | None = None
    """Of one node."""
    cpus: int | None = None
    """Of all nodes together."""
    gpus: int | None = None
    nodes: int | None = None


def parse_limits(values: Mapping[str, str]) -> Limits:
    """The limits that a site sets; raises ValueError naming the one that makes no sense."""
    unknown = [name for name in values if name not in KNOWN_LIMITS]
    if unknown:
        msg = f"`{unknown[0]}` is not known; known are {', '.join(KNOWN_LIMITS)}"
        raise ValueError(msg)
    time = minutes(values["time"]) if "time" in values else None
    if "time" in values and time is None:
        msg = f"`time` is {values['time']!r}, which is not a time"
        raise ValueError(msg)
    return Limits(
        time_minutes=time,
        memory_mib=memory_mib(values["mem"]) if "mem" in values else None,
        **{name: _count(name, values) for name in ("cpus", "gpus", "nodes")},
    )


@dataclass(frozen=True)
class _Amount:
    """How much of something a job asks for, and by which options."""

    what: str
    value: float | None
    limit: float | None
    by: frozenset[str]


def check_limits(
    chosen: tuple[ChosenOption, ...], limits: Limits, head: Mapping[str, str] = _NOTHING
) -> None:
    """Raises OptionRefused if a job asks for more than it may, because of what somebody asked for.

    What the site itself sets, for all jobs or for those with GPUs, is not held against them. `head` are the options of
    its script's own head, by their long names.
    """
    said = {**head, **{option.name: option.value for option in chosen}}
    asked = {option.name for option in chosen if option.is_request}
    for amount in _amounts(said, limits):
        if (
            amount.value is not None
            and amount.limit is not None
            and amount.value > amount.limit
            and asked & amount.by
        ):
            guilty = next(option for option in chosen if option.name in amount.by and option.is_request)
            raise OptionRefused(
                f"{guilty.origin}: the job asks for {_shown(amount.value)} {amount.what}, more than the"
                f" {_shown(amount.limit)} that one job may have here."
            )


def nodes_within(said: Mapping[str, str], asked: AbstractSet[str], limits: Limits) -> int | None:
    """How many nodes Slurm may take for a job that does not say; None if no limit depends on it.

    It takes another when one has no room for all tasks, and what is asked of each node comes as often then (seen with
    22.05.8: `--gres=gpu:2 --ntasks=100` gets four GPUs of two nodes). `said` are all options of the job by their long
    names, `asked` those that somebody asked for.
    """
    if "nodes" in said or not asked & _MAY_SPREAD:
        return None
    if _tasks(said) <= 1 and gpus_of("gpus", said.get("gpus", "0")) <= 1 and "spread-job" not in said:
        return None
    tasks_of_each = max(1, _number(said, "ntasks-per-node")) * max(1, _number(said, "cpus-per-task"))
    of_each = (
        (limits.nodes, 1),
        (limits.gpus, _gpus({name: value for name, value in said.items() if name in _GPUS_OF_NODE}, 1)),
        (limits.cpus, max(_number(said, "mincpus"), tasks_of_each if "ntasks-per-node" in said else 0)),
    )
    most = [limit // amount for limit, amount in of_each if limit is not None and amount]
    return max(1, min(most)) if most else None


def _amounts(said: Mapping[str, str], limits: Limits) -> tuple[_Amount, ...]:
    tasks = _tasks(said)
    gpus = _gpus(said, tasks)
    by_tasks = _TASKS | (_GPUS | {"ntasks-per-gpu"} if "ntasks-per-gpu" in said else frozenset())
    by_gpus = _GPUS | (by_tasks if {"gpus-per-task", "tres-per-task"} & said.keys() else frozenset())
    # Whole nodes, however large they are, with all their processors and GPUs.
    exclusive = frozenset(_WHOLE_NODES)
    all_of_them = math.inf if _has_whole_nodes(said) else None
    return (
        _Amount("minutes", _minutes(said), limits.time_minutes, frozenset({"time", "time-min"})),
        *_memory(said, limits.memory_mib, by_tasks, by_gpus),
        *(
            _Amount("processors", value, limits.cpus, frozenset(by))
            for value, by in _processors(said, tasks, gpus, by_tasks, by_gpus)
        ),
        _Amount("processors", all_of_them, limits.cpus, exclusive),
        _Amount("GPUs", gpus, limits.gpus, frozenset(by_gpus)),
        _Amount("GPUs", all_of_them, limits.gpus, exclusive),
        _Amount("nodes", nodes(said.get("nodes", "")), limits.nodes, frozenset({"nodes"})),
        _Amount("nodes", _needed_nodes(said), limits.nodes, _TASKS - {"nodes"}),
    )


def _has_whole_nodes(said: Mapping[str, str]) -> bool:
    return any(name in said and said[name].lower() not in _SHARED for name in _WHOLE_NODES)


def _processors(
    said: Mapping[str, str], tasks: int, gpus: int, by_tasks: frozenset[str], by_gpus: frozenset[str]
) -> tuple[tuple[int, frozenset[str]], ...]:
    """The ways to say how many processors a job has, the largest of which counts, and by which options."""
    by_nodes = _TASKS if _needed_nodes(said) else frozenset({"nodes"})
    ways = (
        (tasks * max(1, _number(said, "cpus-per-task")), by_tasks | {"cpus-per-task"}),
        (tasks * of_each_task(said.get("tres-per-task", ""), "cpu"), by_tasks | {"tres-per-task"}),
        (gpus * _number(said, "cpus-per-gpu"), by_gpus | {"cpus-per-gpu"}),
        (_number(said, "mincpus") * _nodes(said), by_nodes | {"mincpus"}),
        (_at_least(said.get("extra-node-info", "")) * _nodes(said), by_nodes | {"extra-node-info"}),
    )
    if not _has_idle_threads(said):
        return ways
    return tuple((count * _THREADS, by | frozenset(_OF_CORES)) for count, by in ways)


def _has_idle_threads(said: Mapping[str, str]) -> bool:
    return (
        said.get("hint", "multithread").lower() not in _WITH_ALL_THREADS
        or _number(said, "threads-per-core") == 1
        or _number(said, "ntasks-per-core") == 1
        # `sockets:cores:threads` is three options in one (sbatch(1)).
        or any(_number({"": part}, "") == 1 for part in said.get("extra-node-info", "").split(":")[2:])
    )


def _memory(
    said: Mapping[str, str], limit: float | None, by_tasks: frozenset[str], by_gpus: frozenset[str]
) -> Iterator[_Amount]:
    """Of one node, on which all tasks may be."""
    per_node = {"ntasks": said["ntasks-per-node"]} if "ntasks-per-node" in said else {}
    # Memory is not given for the threads that `hint` leaves idle, but for those of `ntasks-per-core` (seen: 22.05.8).
    one_node = {
        name: value
        for name, value in {**said, **per_node}.items()
        if name not in ("nodes", "ntasks-per-node", "hint", "threads-per-core")
    }
    if "extra-node-info" in said:
        one_node["extra-node-info"] = ":".join(said["extra-node-info"].split(":")[:2])
    tasks = _tasks(one_node)
    gpus = _gpus(one_node, tasks)
    processors = _processors(one_node, tasks, gpus, by_tasks, by_gpus)
    by_processors = frozenset().union(*(by for _, by in processors)) - {"nodes"}
    # Of a whole node all processors count, and all GPUs (seen: 22.05.8).
    all_of_them = math.inf if _has_whole_nodes(said) else 1
    for name, factor, by in (
        ("mem", 1, frozenset[str]()),
        ("mem-per-cpu", max(count for count, _ in processors), by_processors),
        ("mem-per-gpu", max(1, gpus), by_gpus - {"nodes"}),
        ("mem-per-cpu", all_of_them, frozenset(_WHOLE_NODES)),
        ("mem-per-gpu", all_of_them, frozenset(_WHOLE_NODES)),
    ):
        # What the site says is for Slurm to read.
        with contextlib.suppress(ValueError):
            if name in said:
                yield _Amount("MiB of memory", memory_mib(said[name]) * factor, limit, by | {name})


def _count(name: str, values: Mapping[str, str]) -> int | None:
    if name not in values:
        return None
    if not _is_number(values[name]):
        msg = f"`{name}` is {values[name]!r}, which is not a whole number"
        raise ValueError(msg)
    return int(values[name])


def _number(said: Mapping[str, str], name: str) -> int:
    value = said.get(name, "")
    return int(value) if _is_number(value) else 0


def _is_number(text: str) -> bool:
    # Other scripts have digits too, which `isdigit` knows and `int` not always.
    return text.isascii() and text.isdigit() and len(text) < 10


def _minutes(said: Mapping[str, str]) -> float | None:
    found = [minutes(said.get(name, "")) for name in ("time", "time-min")]
    return max((value for value in found if value is not None), default=None)


def _tasks(said: Mapping[str, str]) -> int:
    """How many of all nodes; without a word about it there is one on each.

    Where both are said each node has room for `ntasks-per-node`, however few tasks there are (seen: 22.05.8).
    """
    per_node = _number(said, "ntasks-per-node")
    by_nodes = max(1, per_node) * _nodes(said) if per_node or not _number(said, "ntasks") else 0
    return max(_number(said, "ntasks"), by_nodes, _number(said, "ntasks-per-gpu") * _gpus(said, 1))


def _nodes(said: Mapping[str, str]) -> int:
    """How many are named, or are needed."""
    return max(1, nodes(said.get("nodes", "")), _needed_nodes(said))


def _needed_nodes(said: Mapping[str, str]) -> int:
    """For all tasks, with so many on each; 0 if that is not said."""
    per_node = _number(said, "ntasks-per-node")
    return math.ceil(_number(said, "ntasks") / per_node) if per_node else 0


def _at_least(extra_node_info: str) -> int:
    """The processors in `sockets:cores:threads`, of which the last may be missing."""
    return math.prod(_number({"": part}, "") or 1 for part in extra_node_info.split(":"))


def _gpus(said: Mapping[str, str], tasks: int) -> int:
    per_node = _nodes(said)
    sockets = max(1, _number(said, "sockets-per-node"))
    return max(
        gpus_of("gpus", said.get("gpus-per-socket", "0")) * sockets * per_node,
        gpus_of("gpus", said.get("gpus", "0")),
        gpus_of("gres", said.get("gres", "")) * per_node,
        gpus_of("gpus", said.get("gpus-per-node", "0")) * per_node,
        gpus_of("gpus", said.get("gpus-per-task", "0")) * tasks,
        of_each_task(said.get("tres-per-task", ""), "gpu") * tasks,
    )


def _shown(value: float) -> str:
    return "unlimited" if math.isinf(value) else f"{value:g}"
