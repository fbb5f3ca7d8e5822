"""Volumes in Docker's shapes → mounts → the value of Apptainer's `--mount`. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from girder_worker_singularity.errors import MountInvalid

_MODES = frozenset(
    {"ro", "rw", "z", "Z", "cached", "delegated", "consistent", "rprivate", "rshared", "rslave"}
)


@dataclass(frozen=True)
class Mount:
    """A file or directory of this host, seen inside a container."""

    source: str
    destination: str
    read_only: bool = False

    def __post_init__(self) -> None:
        for role, path in (("source", self.source), ("destination", self.destination)):
            if not path.startswith("/"):
                raise MountInvalid(f"The {role} {path!r} of a mount is not an absolute path.")
            if any(character in path for character in "\0\n\r"):
                raise MountInvalid(f"The {role} {path!r} of a mount holds a line break or NUL.")
        if posixpath.normpath(self.destination) in ("/", "//"):
            raise MountInvalid(f"{self.source!r} cannot be mounted over the whole container.")


def mount_argument(mount: Mount) -> str:
    """The value of `--mount` for this mount; blanks, commas, colons and quotes in paths are kept."""
    # `--bind a:b` splits at commas and colons; --mount is one CSV record (seen: Apptainer 1.4.5).
    fields = ["type=bind", csv_field(f"source={mount.source}"), csv_field(f"destination={mount.destination}")]
    if mount.read_only:
        fields.append("ro")
    return ",".join(fields)


def csv_field(field: str) -> str:
    """The text as one field of a CSV record, whatever stands in it."""
    quoted = field.replace('"', '""')
    return f'"{quoted}"'


def mounts_from_docker_volumes(volumes: Mapping[str, Any] | Sequence[str]) -> list[Mount]:
    """The mounts that docker-py would make of this `volumes` argument."""
    if isinstance(volumes, Mapping):
        return merge_mounts(_from_mapping(source, value) for source, value in volumes.items())
    if isinstance(volumes, str):
        raise MountInvalid(f"Volumes must be a mapping or a list, not {volumes!r}.")
    return merge_mounts(_from_text(text) for text in volumes)


def merge_mounts(mounts: Iterable[Mount]) -> list[Mount]:
    """The same mounts, each once; two sources for one destination are refused, not shadowed."""
    merged: dict[str, Mount] = {}
    for mount in mounts:
        place = posixpath.normpath(mount.destination)
        known = merged.get(place)
        if known is None:
            merged[place] = mount
        elif posixpath.normpath(known.source) != posixpath.normpath(mount.source):
            raise MountInvalid(
                f"Both {known.source!r} and {mount.source!r} are to be mounted at {mount.destination!r}."
            )
        elif known.read_only and not mount.read_only:
            merged[place] = replace(known, read_only=False)
    return list(merged.values())


def _from_mapping(source: str, value: Any) -> Mount:
    if isinstance(value, str):
        return Mount(source, value)
    if not isinstance(value, Mapping) or not isinstance(value.get("bind"), str):
        raise MountInvalid(f"The volume {source!r} does not say where to `bind` it.")
    mode = value.get("mode")
    if mode is None and "ro" in value:  # the older spelling of docker-py
        mode = "ro" if value["ro"] else "rw"
    if mode is not None and not isinstance(mode, str):
        raise MountInvalid(f"The mode {mode!r} of volume {source!r} is not text.")
    return Mount(source, value["bind"], read_only=_is_read_only(source, mode or "rw"))


def _from_text(text: Any) -> Mount:
    if not isinstance(text, str):
        raise MountInvalid(f"A volume must be written as host:container[:mode], not {text!r}.")
    paths, mode = text, "rw"
    head, colon, tail = text.rpartition(":")
    if colon and not tail.startswith("/"):
        paths, mode = head, tail
    # The last `:/` separates, so that a source with colons (a time stamp, say) still works.
    source, colon, destination = paths.rpartition(":/")
    if not colon or not source:
        raise MountInvalid(
            f"The volume {text!r} is not written as host:container[:mode] with absolute paths."
        )
    return Mount(source, f"/{destination}", read_only=_is_read_only(source, mode))


def _is_read_only(source: str, mode: str) -> bool:
    words = mode.split(",")
    unknown = [word for word in words if word not in _MODES]
    if unknown:
        raise MountInvalid(
            f"The volume {source!r} has the unknown mode {mode!r}.", remedy="Use `ro` or `rw`."
        )
    return "ro" in words
