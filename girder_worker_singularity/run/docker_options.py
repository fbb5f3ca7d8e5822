"""Docker's run options → what a container gets here, what a job should ask for, and what has no counterpart. Pure.

The options are those of docker-py's `containers.run`, from a task, from a CLI's `docker-params` or from the site.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from girder_worker_singularity.errors import DockerOptionInvalid
from girder_worker_singularity.run.mounts import Mount, merge_mounts, mounts_from_docker_volumes

# What docker-py and the stock task do with these has no meaning here, or is so anyway: a container is removed at its
# end, has a first process that collects others (`init`), and a /dev/shm of its own as large as half of the node's
# memory (`shm_size`).
_NOTHING_TO_DO = frozenset(
    {
        "auto_remove", "container_args", "detach", "image", "init", "labels", "name", "pull_image", "remove",
        "remove_container", "shm_size", "stderr", "stdin_open", "stdout", "stream", "stream_connectors", "tty",
    }
)  # fmt: skip
_MAPPED = frozenset(
    {
        "cpu_count", "cpu_period", "cpu_quota", "cpuset_cpus", "device_requests", "devices", "entrypoint", "environment",
        "hostname", "ipc_mode", "mem_limit", "mounts", "nano_cpus", "network", "network_disabled", "network_mode",
        "pid_mode", "read_only", "runtime", "tmpfs", "user", "volumes", "working_dir",
    }
)  # fmt: skip
# The job shares the node's network unless it has none; each container has its own processes and /dev/shm.
_SAME_AS_HERE = {
    "network": ("bridge", "default", "host", "none"),
    "network_mode": ("bridge", "default", "host", "none"),
    "ipc_mode": ("private", "shareable", "none"),
    "pid_mode": ("private",),
    "runtime": ("nvidia", "runc"),
}
_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_MIB = 1024**2
_DEFAULT_CPU_PERIOD = 100_000
_NVIDIA_DEVICE = "/dev/nvidia"


@dataclass(frozen=True)
class ResourceWishes:
    """What a container should have at least; 0 is no wish."""

    memory_mib: int = 0
    cpus: int = 0
    gpus: int = 0


NO_WISHES = ResourceWishes()


@dataclass(frozen=True)
class DockerOptions:
    """The options, translated."""

    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    #: Places in the container for an empty directory that is lost at the end.
    scratch_mounts: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    working_dir: str | None = None
    hostname: str | None = None
    #: As Docker has it: name or number, maybe `:group`.
    user: str | None = None
    without_network: bool = False
    read_only: bool = False
    wishes: ResourceWishes = NO_WISHES
    #: Names of options that ask for something which no container here gets.
    ignored: tuple[str, ...] = ()


def docker_options(options: Mapping[str, Any]) -> DockerOptions:
    """The options translated; raises DockerOptionInvalid or MountInvalid for a value that makes no sense."""
    try:
        return _translated(options)
    except (TypeError, ValueError, OverflowError, AttributeError, LookupError) as error:
        raise DockerOptionInvalid(f"The Docker options hold a value of a wrong kind ({error}).") from error


def _translated(options: Mapping[str, Any]) -> DockerOptions:
    devices, device_gpus = _devices(options.get("devices"))
    typed, typed_scratch = _typed_mounts(options.get("mounts"))
    network = options.get("network_mode") or options.get("network")
    gpus = max(
        _requested_gpus(options.get("device_requests")),
        device_gpus,
        int(options.get("runtime") == "nvidia"),
    )
    return DockerOptions(
        environment=_environment(options.get("environment")),
        mounts=tuple(
            merge_mounts((*mounts_from_docker_volumes(options.get("volumes") or {}), *typed, *devices))
        ),
        scratch_mounts=tuple(dict.fromkeys((*_tmpfs(options.get("tmpfs")), *typed_scratch))),
        entrypoint=_words("entrypoint", options.get("entrypoint")),
        working_dir=_text("working_dir", options.get("working_dir")),
        hostname=_text("hostname", options.get("hostname")),
        user=_user(options.get("user")),
        without_network=network == "none" or bool(options.get("network_disabled")),
        read_only=bool(options.get("read_only")),
        wishes=ResourceWishes(_memory_mib(options.get("mem_limit")), _cpus(options), gpus),
        ignored=tuple(
            sorted(name for name, value in options.items() if value and not _is_met(name, value, options))
        ),
    )


def _is_met(name: str, value: Any, options: Mapping[str, Any]) -> bool:
    if name in _SAME_AS_HERE:
        return value in _SAME_AS_HERE[name]
    if name == "cpu_period":
        return bool(options.get("cpu_quota"))
    return name in _NOTHING_TO_DO or name in _MAPPED


def _environment(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {str(key): "" if entry is None else str(entry) for key, entry in value.items()}
    pairs = (str(entry).partition("=") for entry in value or ())
    return {name: text for name, _, text in pairs if name}


def _words(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))  # as docker-py does
        except ValueError as error:
            raise _invalid(name, value, "a command line") from error
    if isinstance(value, Iterable):
        words = tuple(str(word) for word in value)
        return () if words == ("",) else words
    raise _invalid(name, value, "a program and its arguments")


def _text(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    raise _invalid(name, value, "text")


def _user(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _memory_mib(value: Any) -> int:
    """Docker's memory limit in MiB, rounded up; 0 and -1 are none."""
    if value in (None, "", 0, -1, "0", "-1"):
        return 0
    match = _MEMORY.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise _invalid("mem_limit", value, "bytes, or a number with b, k, m or g")
    return math.ceil(float(match[1]) * _UNITS[match[2].lower()] / _MIB)


def _cpus(options: Mapping[str, Any]) -> int:
    """Whole processors, rounded up; the largest of the ways to say it."""
    quota = _number("cpu_quota", options.get("cpu_quota"))
    period = _number("cpu_period", options.get("cpu_period")) or _DEFAULT_CPU_PERIOD
    return max(
        math.ceil(_number("nano_cpus", options.get("nano_cpus")) / 1e9),
        math.ceil(_number("cpu_count", options.get("cpu_count"))),
        math.ceil(max(0.0, quota) / period),
        _listed("cpuset_cpus", options.get("cpuset_cpus")),
    )


def _number(name: str, value: Any) -> float:
    if value in (None, ""):
        return 0.0
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or (number < 0 and name != "cpu_quota"):
        raise _invalid(name, value, "a number")
    return number


def _listed(name: str, value: Any) -> int:
    """How many there are in a list such as `0-3,6`."""
    if value in (None, ""):
        return 0
    listed: set[int] = set()
    for part in str(value).split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if match is None:
            raise _invalid(name, value, "a list such as 0-3,6")
        listed.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return len(listed)


def _requested_gpus(requests: Any) -> int:
    """How many GPUs are asked for; all of a machine (-1) is one, because the machine is not known here."""
    gpus = 0
    for request in requests or ():
        if not isinstance(request, Mapping):
            raise _invalid("device_requests", request, "a list of Docker's device requests")
        # docker-py's own object is a mapping with Docker's names; JSON written by hand has docker-py's.
        asked = {str(key).replace("_", "").lower(): value for key, value in request.items()}
        kinds = {str(kind) for kinds in asked.get("capabilities") or () for kind in kinds}
        if not kinds or "gpu" in kinds or asked.get("driver") == "nvidia":
            count = int(_number("device_requests", max(0, asked.get("count") or 0)))
            gpus += max(1, count, len(asked.get("deviceids") or ()))
    return gpus


def _devices(value: Any) -> tuple[list[Mount], int]:
    """Devices as mounts, and how many GPUs are among them."""
    mounts, gpus = [], 0
    for device in value or ():
        if isinstance(device, Mapping):
            source = str(device.get("PathOnHost") or "")
            destination = str(device.get("PathInContainer") or source)
        else:
            source, _, rest = str(device).partition(":")
            destination = rest.partition(":")[0] or source
        if source.startswith(_NVIDIA_DEVICE):
            # Which GPU it is, is for Slurm to say, and --nv brings what belongs to it.
            gpus += int(source.removeprefix(_NVIDIA_DEVICE).isdigit())
            continue
        if not destination.startswith("/"):  # `/dev/fuse:rwm`
            destination = source
        mounts.append(Mount(source, destination))
    return mounts, gpus


def _tmpfs(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        places = [str(place) for place in value]
    else:
        places = [
            str(entry).partition(":")[0] for entry in ([value] if isinstance(value, str) else value or ())
        ]
    for place in places:
        if not place.startswith("/") or any(character in place for character in "\0\r\n"):
            raise _invalid("tmpfs", place, "an absolute path")
    return tuple(places)


def _typed_mounts(value: Any) -> tuple[list[Mount], tuple[str, ...]]:
    mounts: list[Mount] = []
    scratch: list[str] = []
    for entry in value or ():
        if not isinstance(entry, Mapping):
            raise _invalid("mounts", entry, "a list of Docker's mounts")
        target, kind = str(entry.get("Target") or ""), entry.get("Type", "volume")
        if kind == "bind":
            mounts.append(
                Mount(str(entry.get("Source") or ""), target, read_only=bool(entry.get("ReadOnly")))
            )
        elif kind in ("tmpfs", "volume") and not (kind == "volume" and entry.get("Source")):
            scratch.extend(_tmpfs([target]))
        else:
            raise _invalid("mounts", dict(entry), "of type bind or tmpfs; named volumes are Docker's own")
    return mounts, tuple(scratch)


def _invalid(name: str, value: Any, wanted: str) -> DockerOptionInvalid:
    return DockerOptionInvalid(f"The Docker option `{name}` is {value!r}, which is not {wanted}.")
