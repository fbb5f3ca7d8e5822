"""The options of sbatch, and what kind of value each takes. Pure.

From sbatch(1) of Slurm 22.05 to 26.05. What an older Slurm does not know it refuses itself, in its own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: Options that decide where a job's files go, who runs it or which job it is: never from a setting or a user.
RESERVED_OPTIONS = frozenset(
    {
        "array",
        "batch",
        "chdir",
        "clusters",
        "dependency",
        "error",
        "export",
        "export-file",
        "gid",
        "get-user-env",
        "help",
        "hold",
        "ignore-pbs",
        "input",
        "job-name",
        "kill-on-invalid-dep",
        "no-requeue",
        "open-mode",
        "output",
        "parsable",
        "quiet",
        "requeue",
        "test-only",
        "uid",
        "usage",
        "verbose",
        "version",
        "wait",
        "wait-all-nodes",
        "wrap",
        "J",
        "o",
        "e",
        "i",
        "D",
        "a",
        "d",
        "H",
        "M",
        "Q",
        "V",
        "W",
        "h",
        "v",
    }
)


class Kind(Enum):
    """What values an option takes."""

    TEXT = "text"
    COUNT = "a whole number"
    NODES = "a number of nodes, such as 2 or 2-4"
    TIME = "a time, such as 90 (minutes), 1:30:00 or 2-12:00:00"
    MEMORY = "an amount of memory, such as 4000 (megabytes), 16G or 1T"
    GRES = "generic resources, such as gpu:2 or gpu:a100:1"
    GPUS = "a number of GPUs, such as 2 or a100:2"
    FLAG = "nothing: it is a flag"
    OPTIONAL = "nothing, or a value behind `=`"
    SHAPE = "`single` or `distributed`"


@dataclass(frozen=True)
class SbatchOption:
    """One option of sbatch."""

    name: str
    kind: Kind = Kind.TEXT
    letter: str = ""


def _options(kind: Kind, names: str) -> list[SbatchOption]:
    found = []
    for word in names.split():
        name, _, letter = word.partition("/")
        found.append(SbatchOption(name, kind, letter))
    return found


#: What is said about a job's shape instead of sbatch's own options; `shapes.shaped` turns it into those.
SHAPE_NAMES = frozenset({"cpus", "tasks", "shape"})
SINGLE, DISTRIBUTED = "single", "distributed"

#: The size in MiB of an overlay that makes the job's image writable; sbatch never hears of it.
OVERLAY = "overlay"
#: What Slurm cannot judge.
NOT_SLURM_S = SHAPE_NAMES | {OVERLAY}

_ALL = (
    *_options(Kind.COUNT, OVERLAY),
    *_options(Kind.COUNT, "cpus tasks"),
    *_options(Kind.SHAPE, "shape"),
    *_options(
        Kind.TEXT,
        "account/A acctg-freq bb begin/b cluster-constraint comment constraint/C container container-id cpu-freq deadline"
        " distribution/m exclude/x extra extra-node-info/B gpu-bind gpu-freq gres-flags hint licenses/L mail-type"
        " mail-user mcs-label mem-bind network nodelist/w partition/p power prefer priority profile qos/q reservation"
        " segment signal switches tres-bind tres-per-task wckey",
    ),
    *_options(
        Kind.COUNT,
        "core-spec/S cores-per-socket cpus-per-gpu cpus-per-task/c delay-boot mincpus ntasks/n"
        " ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket resv-ports sockets-per-node thread-spec"
        " threads-per-core",
    ),
    *_options(Kind.NODES, "nodes/N"),
    *_options(Kind.TIME, "time/t time-min"),
    *_options(Kind.MEMORY, "mem mem-per-cpu mem-per-gpu tmp"),
    *_options(Kind.GRES, "gres"),
    *_options(Kind.GPUS, "gpus/G gpus-per-node gpus-per-socket gpus-per-task"),
    *_options(
        Kind.FLAG,
        "consolidate-segments contiguous oversubscribe/s overcommit/O reboot spread-job stepmgr use-min-nodes",
    ),
    *_options(Kind.OPTIONAL, "exclusive nice no-kill/k propagate x11"),
)

OPTIONS = {option.name: option for option in _ALL}
_BY_LETTER = {option.letter: option.name for option in _ALL if option.letter}

#: Options of which only one may stand in a job: a later layer's takes the place of all others of its group.
EXCLUSIVE_GROUPS = (
    frozenset({"mem", "mem-per-cpu", "mem-per-gpu"}),
    frozenset({"exclusive", "oversubscribe"}),
    frozenset({"cpus", "cpus-per-task"}),
    frozenset({"shape", "tasks", "ntasks"}),
)

#: What an image or a user may ask for unless the site says otherwise: how much and how long, not who pays.
USUALLY_ALLOWED = (
    "begin",
    "comment",
    "constraint",
    "contiguous",
    "cpus",
    "cpus-per-gpu",
    "cpus-per-task",
    "deadline",
    "exclusive",
    "gpus",
    "gpus-per-node",
    "gpus-per-task",
    "gres",
    "hint",
    "licenses",
    "mem",
    "mem-per-cpu",
    "mem-per-gpu",
    "nice",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "partition",
    "shape",
    "tasks",
    "threads-per-core",
    "time",
    "time-min",
    "tmp",
)


def long_name(name: str) -> str:
    """The long name of an option, whichever of its names this is; an unknown name is left as it is."""
    return _BY_LETTER.get(name, name)


def is_reserved(name: str) -> bool:
    """Whether the worker itself sets this option, or it would make another job, or none, of the job."""
    return name in RESERVED_OPTIONS
