"""Devices that are none: `partition=`, `exclusive=`, `overlay=` and `sbatch_<option>=` among a task's devices. Pure.

So JARVICE's applications say what their jobs ask of Slurm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import OptionRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

_PREFIX = "sbatch_"
_OFF = ("false", "no", "0")


def split_devices(devices: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The devices, and what the others say as options of the job; raises OptionRefused for one that is neither."""
    kept: list[Any] = []
    said: dict[str, Any] = {}
    for device in devices:
        if not isinstance(device, str) or device.startswith("/") or "=" not in device:
            kept.append(device)
            continue
        name, _, value = (part.strip() for part in device.partition("="))
        if name == "exclusive":
            said[name] = value.lower() not in _OFF
        elif name in ("partition", "overlay"):
            said[name] = value
        elif name.startswith(_PREFIX) and name != _PREFIX:
            said[name.removeprefix(_PREFIX)] = value
        else:
            msg = (
                f"The device {device!r} is not known: neither a path nor one of partition=NAME, exclusive=True, overlay=MIB,"
                " sbatch_OPTION=VALUE."
            )
            raise OptionRefused(msg)
    return kept, said
