"""What a SIF file says about itself, read without Apptainer (login nodes often have none).

Layout (Singularity Image Format 1, little endian, packed): a 128-byte header, then a table of 585-byte
descriptors, each pointing at one object of the file.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from girder_worker_singularity.errors import SifDamaged, SifUnsupported

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<iBIII7q128s384s")
_MAGIC = b"SIF_MAGIC\0"
_DEFINITION = 0x4001
_PARTITION = 0x4004
_JSON = 0x4006
_OCI_ROOT_INDEX = 0x400A
_PRIMARY_SYSTEM_PARTITION = 2
_MOST_DESCRIPTORS = 4096
_MOST_JSON_BYTES = 16 * 1024 * 1024
_ARCHITECTURES = {
    "01": "386",
    "02": "amd64",
    "03": "arm",
    "04": "arm64",
    "05": "ppc64",
    "06": "ppc64le",
    "07": "mips",
    "08": "mipsle",
    "09": "mips64",
    "10": "mips64le",
    "11": "s390x",
    "12": "riscv64",
}
_RUNSCRIPT = re.compile(r"^[ \t]*%runscript\b", re.MULTILINE)
_BOOTSTRAP = re.compile(r"^[ \t]*bootstrap[ \t]*:[ \t]*(\S+)", re.MULTILINE | re.IGNORECASE)
_FROM = re.compile(r"^[ \t]*from[ \t]*:[ \t]*(\S+)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class SifContents:
    """What is known about a container without starting it."""

    identity: str
    """Differs between any two builds, so that what was noted about one is not believed of another."""
    architecture: str
    """As Go names it (`amd64`, `arm64`), or `unknown`."""
    size_bytes: int
    oci_config: Mapping[str, Any] | None = None
    """The image's own configuration, or None if this SIF was not made from a container image."""
    labels: Mapping[str, str] = field(default_factory=dict)
    definition: str = ""
    """The definition file it was built by; Apptainer writes one for every image it converts."""

    @property
    def overrides_runscript(self) -> bool:
        """Whether its definition may have replaced what the image starts.

        Apptainer keeps the parent's Entrypoint in `oci_config` then. A SIF made from another SIF does not
        tell what the other one's definition said, so it counts too.
        """
        bootstrap = _BOOTSTRAP.search(self.definition)
        return bool(_RUNSCRIPT.search(self.definition)) or (
            bootstrap is not None and bootstrap.group(1).lower() in ("localimage", "library", "oras", "shub")
        )

    @property
    def pulled_from(self) -> str | None:
        """The image reference it was pulled by, if it came straight from a registry or Docker engine."""
        bootstrap, source = _BOOTSTRAP.search(self.definition), _FROM.search(self.definition)
        if bootstrap and source and bootstrap.group(1).lower() in ("docker", "docker-daemon"):
            return source.group(1)
        return None


class _Descriptor(NamedTuple):
    data_type: int
    offset: int
    size: int
    name: str
    extra: bytes


def read_sif(path: Path) -> SifContents:
    """What the SIF says about itself; SifDamaged if the file is not a whole SIF, SifUnsupported if it is an OCI-SIF.

    Checks that header, table and every object lie inside the file, not the objects' contents. Raises
    FileNotFoundError if there is no file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise SifDamaged(
            f"{path} is no file.", remedy="Remove it; the SIF is made when the image is next asked for."
        )
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        header = _read_at(file, path, 0, _HEADER.size)
        (
            _launch,
            magic,
            _version,
            architecture,
            uuid,
            created,
            _modified,
            _free,
            total,
            offset,
            _size,
            *_data,
        ) = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise SifDamaged(f"{path} is not a SIF file.")
        if not 0 < total <= _MOST_DESCRIPTORS:
            raise SifDamaged(f"{path} is damaged: its header promises {total} objects.")
        table = _read_at(file, path, offset, total * _DESCRIPTOR.size)
        descriptors = [_descriptor(entry) for entry in _DESCRIPTOR.iter_unpack(table) if entry[1]]
        for descriptor in descriptors:
            if (
                descriptor.offset < 0
                or descriptor.size < 0
                or descriptor.offset + descriptor.size > size_bytes
            ):
                raise SifDamaged(f"{path} is cut off: {descriptor.name or 'an object'} lies beyond its end.")
        _check_partition(file, path, descriptors)
        metadata = _json_object(file, path, descriptors, "inspect-metadata.json")
        return SifContents(
            identity=f"{uuid.hex()}-{created}-{size_bytes}",
            architecture=_ARCHITECTURES.get(architecture.rstrip(b"\0").decode("ascii", "replace"), "unknown"),
            size_bytes=size_bytes,
            oci_config=_oci_config(_json_object(file, path, descriptors, "oci-config.json")),
            labels=_labels(metadata),
            definition=_definition(file, path, descriptors),
        )


def _descriptor(entry: tuple[Any, ...]) -> _Descriptor:
    (
        data_type,
        _used,
        _id,
        _group,
        _link,
        offset,
        size,
        _padded,
        _created,
        _modified,
        _uid,
        _gid,
        name,
        extra,
    ) = entry
    return _Descriptor(data_type, offset, size, name.split(b"\0", 1)[0].decode("utf-8", "replace"), extra)


def _read_at(file: BinaryIO, path: Path, offset: int, size: int) -> bytes:
    if offset < 0 or offset + size > os.fstat(file.fileno()).st_size:
        raise SifDamaged(f"{path} is cut off.")
    file.seek(offset)
    return file.read(size)


def _check_partition(file: BinaryIO, path: Path, descriptors: list[_Descriptor]) -> None:
    for descriptor in descriptors:
        if descriptor.data_type == _PARTITION:
            file_system, part_type = struct.unpack_from("<ii", descriptor.extra)
            if part_type != _PRIMARY_SYSTEM_PARTITION:
                continue
            if file_system == 1:
                _check_squashfs(file, path, descriptor)
            return
    if any(descriptor.data_type == _OCI_ROOT_INDEX for descriptor in descriptors):
        raise SifUnsupported(f"{path} is an OCI-SIF of SingularityCE, which Apptainer cannot run.")
    raise SifDamaged(f"{path} is damaged: it holds no system partition.")


def _check_squashfs(file: BinaryIO, path: Path, descriptor: _Descriptor) -> None:
    superblock = _read_at(file, path, descriptor.offset, 96)
    (bytes_used,) = struct.unpack_from("<Q", superblock, 40)
    if superblock[:4] != b"hsqs" or bytes_used > descriptor.size:
        raise SifDamaged(f"{path} is damaged: its file system is not whole.")


def _json_object(
    file: BinaryIO, path: Path, descriptors: list[_Descriptor], name: str
) -> dict[str, Any] | None:
    # By name: the number depends on the version that built the file, and a SIF from a sandbox has none.
    for descriptor in descriptors:
        if descriptor.data_type == _JSON and descriptor.name == name:
            if descriptor.size > _MOST_JSON_BYTES:
                raise SifDamaged(f"{path} is damaged: {name} is {descriptor.size} bytes long.")
            try:
                value = json.loads(_read_at(file, path, descriptor.offset, descriptor.size))
            except (ValueError, RecursionError) as error:
                raise SifDamaged(f"{path} is damaged: {name} is not JSON.") from error
            return value if isinstance(value, dict) else None
    return None


def _oci_config(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """The image configuration, which some versions wrap as `{"config": {...}}`."""
    if value is not None and isinstance(value.get("config"), dict):
        return dict(value["config"])
    return value


def _labels(metadata: dict[str, Any] | None) -> dict[str, str]:
    value: Any = metadata or {}
    for key in ("data", "attributes", "labels"):
        value = value.get(key) if isinstance(value, dict) else None
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else {}


def _definition(file: BinaryIO, path: Path, descriptors: list[_Descriptor]) -> str:
    for descriptor in descriptors:
        if descriptor.data_type == _DEFINITION and descriptor.size <= _MOST_JSON_BYTES:
            return _read_at(file, path, descriptor.offset, descriptor.size).decode("utf-8", "replace")
    return ""
