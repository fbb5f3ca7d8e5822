"""Girder's settings `worker_slurm.*`: their names, what each may hold, and what becomes of them in a job. Pure.

Both ends use this module: the plugin inside the Girder server checks what an administrator of Girder enters, and the
worker believes none of it. It imports nothing that is not as pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.catalogue import OPTIONS
from girder_worker_slurm.options.layers import AllowedOptions, Layer, choose
from girder_worker_slurm.options.limits import check_limits
from girder_worker_slurm.options.shapes import shaped
from girder_worker_slurm.options.values import checked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from girder_worker_slurm.options.limits import Limits

#: What Girder calls them; the second is how older provisioning files of the Digital Slide Archive begin.
KEY_PREFIX = "worker_slurm."
OLD_KEY_PREFIX = "worker.slurm_"

#: Setting → option of sbatch, of all jobs.
_OF_ALL_JOBS = {
    "account": "account",
    "qos": "qos",
    "mem": "mem",
    "cpus": "cpus-per-task",
    "ntasks": "ntasks",
    "partition": "partition",
    "time": "time",
    "gres_config": "gres",
}
#: The same, of jobs that want GPUs.
_OF_GPU_JOBS = {"gpu": "gres", "gpu_partition": "partition"}
_OPTION_OF = {**_OF_ALL_JOBS, **_OF_GPU_JOBS}
SETTINGS = tuple(_OPTION_OF)

_GPU_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_GPU_NUMBER = re.compile(r"[1-9][0-9]{0,4}")
_SHOWN_CHARACTERS = 60


def checked_setting(setting: str, value: object) -> str:
    """What a setting says, as text; empty if it says nothing. Raises ValueError with what is wanted instead.

    `setting` is its name without what all of them begin with. Numbers are as good as text.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        msg = "is neither text nor a whole number"
        raise ValueError(msg)  # noqa: TRY004 - it is data, not an argument
    text = str(value).strip()
    if not text:
        return ""
    try:
        if setting == "gpu":
            _gpu(text)
            return text
        return checked(OPTIONS[_OPTION_OF[setting]].kind, text)
    except ValueError as error:
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
        msg = f"is {shown!r}, which {error}"
        raise ValueError(msg) from error


@dataclass(frozen=True)
class GirderLayer:
    """What Girder's settings come to in one job."""

    layers: tuple[Layer, ...] = ()
    """One for each setting that counts for every job, as if the site itself had said it."""
    gpu_options: Mapping[str, str] = field(default_factory=dict)
    """Options of jobs that want GPUs; {gpus} stands for how many."""
    gpu_origins: Mapping[str, str] = field(default_factory=dict)
    """Where each of these comes from."""
    least_gpus: int = 0
    """How many a job gets that wants any."""
    passed_over: tuple[str, ...] = ()
    """A sentence about each setting that does not count here."""


def girder_layer(
    told: Mapping[str, object],
    *,
    site: Sequence[Layer],
    later: Sequence[Layer],
    allowed: AllowedOptions,
    limits: Limits,
    head: Mapping[str, str],
) -> GirderLayer:
    """What of the settings that Girder tells counts, between the options of the site and those of `later`.

    Whoever administers Girder need not administer the cluster: what the site does not allow, what cannot be meant and
    what would lead beyond a limit is passed over, and the job gets what it would have without it. `head` are the
    options of the head of the site's own script, by their long names.
    """
    kept: list[Layer] = []
    passed_over: list[str] = []
    gpu = GirderLayer()
    for setting in SETTINGS:
        origin = f"Girder settings, {KEY_PREFIX}{setting}"
        option = _OPTION_OF[setting]
        try:
            text = checked_setting(setting, told.get(setting))
            if not text:
                continue
            _check_allowed(option, allowed, origin)
            if setting in _OF_GPU_JOBS:
                gpu = _with_gpu(gpu, setting, text, origin, limits)
                continue
            layer = Layer(origin, ((option, text),), is_request=True)
            check_limits(shaped(choose((*site, *kept, layer, *later), allowed)), limits, head)
            kept.append(layer)
        except OptionRefused as error:
            passed_over.append(f"{error} It is passed over.")
        except ValueError as error:
            passed_over.append(f"{origin} {error}. It is passed over.")
    # From here on they are the site's: what a user adds to them is the user's doing.
    return replace(
        gpu,
        layers=tuple(replace(layer, is_request=False) for layer in kept),
        passed_over=tuple(passed_over),
    )


def _check_allowed(option: str, allowed: AllowedOptions, origin: str) -> None:
    if option not in allowed.names:
        msg = f"{origin}: Girder's settings may not choose the sbatch option `{option}` here."
        raise OptionRefused(msg)


def _with_gpu(gpu: GirderLayer, setting: str, text: str, origin: str, limits: Limits) -> GirderLayer:
    option, value = _OF_GPU_JOBS[setting], text
    if setting == "gpu":
        kind, number = _gpu(text)
        if limits.gpus is not None and number > limits.gpus:
            msg = f"{origin}: {number} GPUs are more than the {limits.gpus} that one job may have here."
            raise OptionRefused(msg)
        gpu = replace(gpu, least_gpus=number)
        if not kind:
            return gpu
        value = f"gpu:{kind}:{{gpus}}"
    return replace(
        gpu,
        gpu_options={**gpu.gpu_options, option: value},
        gpu_origins={**gpu.gpu_origins, option: origin},
    )


def _gpu(text: str) -> tuple[str, int]:
    """Type and number of a setting such as `a100`, `2`, `a100:2` or `gpu:a100:2`; raises ValueError."""
    parts = text.split(":")
    if parts[0] == "gpu":
        parts = parts[1:]
    number = int(parts.pop()) if parts and _GPU_NUMBER.fullmatch(parts[-1]) else 0
    kind = parts.pop() if parts else ""
    if parts or (kind and not _GPU_TYPE.fullmatch(kind)):
        msg = "is not a type of GPUs or a number of them, such as a100, 2 or a100:2"
        raise ValueError(msg)
    return kind, number
