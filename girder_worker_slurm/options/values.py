"""Values of sbatch options: whether they can be meant, and how much they are. Pure."""

from __future__ import annotations

import math
import re
import unicodedata

from girder_worker_slurm.options.catalogue import DISTRIBUTED, SINGLE, Kind

_MEMORY = re.compile(r"([0-9]+)([KMGT]?)B?", re.IGNORECASE)
_MIB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_COUNT = re.compile(r"[0-9]{1,9}")
_NODES = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")
_GPUS = re.compile(r"(?:[A-Za-z][A-Za-z0-9_.-]*:)?([0-9]{1,5})")
_GRES = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(?::[A-Za-z0-9_.-]+)*(?:/[a-z]+)?")
_GRES_PREFIX = re.compile(r"^(?:gres[:/])+")
_ENDLESS = ("infinite", "unlimited")
_GPU_COUNT = re.compile(r"([0-9]+)([KMGTP]?)", re.IGNORECASE)
_MOST_GPUS = 10**9
_LONGEST_VALUE = 4096


def checked(kind: Kind, value: str) -> str:
    """The value as sbatch takes it; raises ValueError with what is wanted instead."""
    text = value.strip()
    # Cc: control characters; Cs: halves of characters, which no program can be given; Zl, Zp: line breaks.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        msg = "has control characters"
        raise ValueError(msg)
    if len(text) > _LONGEST_VALUE:
        msg = f"has {len(text)} characters, more than {_LONGEST_VALUE}"
        raise ValueError(msg)
    if kind is Kind.FLAG and text.lower() in ("", "true", "yes", "1"):
        return ""
    if kind is Kind.OPTIONAL:
        return "" if text.lower() in ("true", "yes") else text
    if _is_meant(kind, text):
        return text
    msg = f"is not {kind.value}"
    raise ValueError(msg)


def _is_meant(kind: Kind, text: str) -> bool:
    match kind:
        case Kind.TEXT:
            return text != ""
        case Kind.COUNT:
            return _COUNT.fullmatch(text) is not None
        case Kind.SHAPE:
            return text in (SINGLE, DISTRIBUTED)
        case Kind.NODES:
            return nodes(text) > 0
        case Kind.TIME:
            return minutes(text) is not None
        case Kind.MEMORY:
            return _MEMORY.fullmatch(text) is not None
        case Kind.GRES:
            return all(_GRES.fullmatch(part) for part in text.split(","))
        case Kind.GPUS:
            return all(_GPUS.fullmatch(part) for part in text.split(","))
    return False


def minutes(text: str) -> float | None:
    """A time limit in minutes, infinite for none at all; None if it is no time (sbatch(1), `--time`).

    Accepted are `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` and
    `days-hours:minutes:seconds`. 0, however it is written, is no limit.
    """
    if text.lower() in _ENDLESS:
        return math.inf
    days, dash, rest = text.partition("-")
    parts = (rest if dash else text).split(":")
    if len(parts) > 3 or not all(_COUNT.fullmatch(part) for part in (*parts, *([days] if dash else []))):
        return None
    numbers = [int(part) for part in parts]
    if dash:
        hours, mins, seconds = [*numbers, 0, 0][:3]
        hours += int(days) * 24
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, mins, seconds = [0, *numbers, 0][:3]
    return hours * 60 + mins + seconds / 60 or math.inf


def memory_mib(text: str) -> float:
    """Memory in MiB; infinite for `0`, which is all of a node. Raises ValueError if it is no amount of memory."""
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        msg = f"{text!r} is not {Kind.MEMORY.value}"
        raise ValueError(msg)
    return math.inf if int(match[1]) == 0 else int(match[1]) * _MIB[match[2].upper()]


def nodes(text: str) -> int:
    """The largest number of nodes meant; 0 if it is none."""
    match = _NODES.fullmatch(text)
    if match is None:
        return 0
    least, most = int(match[1]), int(match[2] or match[1])
    return most if 0 < least <= most else 0


def gpus_of(name: str, value: str) -> int:
    """How many GPUs this value of `gres`, `gpus` or `gpus-per-...` names."""
    total = 0
    for part in value.split(","):
        if name == "gres":
            # `gres:gpu:2` is `gpu:2` (seen: 22.05.8).
            kind, _, rest = _GRES_PREFIX.sub("", part).partition(":")
            if kind != "gpu":
                continue
            last = rest.rpartition(":")[2]
            total += _gpu_count(last, otherwise=1)
        else:
            total += _gpu_count(part.rpartition(":")[2], otherwise=0)
    return total


def of_each_task(value: str, resource: str) -> int:
    """How many of `cpu` or `gpu` a value of `tres-per-task` names: `cpu=4,gres/gpu=1`, with `:` for either sign before 24.05."""
    total = 0
    for part in value.split(","):
        name, _, count = _GRES_PREFIX.sub("", part.strip()).replace("=", ":").rpartition(":")
        if name.partition(":")[0] == resource:
            total += _gpu_count(count, otherwise=0)
    return total


def _gpu_count(text: str, *, otherwise: int) -> int:
    """The count at the end of a GPU's name; a billion for whatever is more. Slurm reads `1k` as 1024."""
    match = _GPU_COUNT.fullmatch(text)
    if match is None:
        return otherwise
    if len(match[1]) > 9:
        return _MOST_GPUS
    power = "KMGTP".index(match[2].upper()) + 1 if match[2] else 0
    return int(match[1]) << (10 * power)
