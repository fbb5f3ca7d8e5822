"""SIF files made by hand, and an `apptainer` that makes them: for tests that need no container to run."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.testing import FakeAnswer, FakeCall, FakeCommandRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFINITION, PARTITION, JSON = 0x4001, 0x4004, 0x4006
_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<iBIII7q128s384s")
_DATA_OFFSET = 32768
SQUASHFS = b"hsqs" + bytes(36) + struct.pack("<Q", 4096) + bytes(4048)


def sif_bytes(
    *,
    oci_config: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    definition: str = "bootstrap: docker\nfrom: team/tool:1\n",
    architecture: bytes = b"02\0",
    file_system: bytes = SQUASHFS,
    identity: bytes | None = None,
) -> bytes:
    """The content of a SIF file, in Apptainer's order of objects."""
    metadata = {"data": {"attributes": {"labels": dict(labels or {})}}, "type": "container"}
    objects = [(DEFINITION, "Def.FILE", definition.encode(), b"")]
    objects.append((JSON, "inspect-metadata.json", json.dumps(metadata).encode(), b""))
    if oci_config is not None:
        objects.append((JSON, "oci-config.json", json.dumps(oci_config).encode(), b""))
    objects.append((PARTITION, "squashfs-1", file_system, struct.pack("<ii3s", 1, 2, architecture)))
    table, data = b"", b""
    for number, (kind, name, content, extra) in enumerate(objects, 1):
        offset = _DATA_OFFSET + len(data)
        place = (offset, len(content), len(content), 0, 0, 0, 0)
        table += _DESCRIPTOR.pack(kind, 1, number, 1, 0, *place, name.encode(), extra)
        data += content
    table += bytes(_DESCRIPTOR.size * (48 - len(objects)))
    launch = b"#!/usr/bin/env run-singularity\n"
    numbers = (1700000000, 1700000000, 48 - len(objects), 48, 4096, len(table), _DATA_OFFSET, len(data))
    header = _HEADER.pack(
        launch, b"SIF_MAGIC\0", b"01\0", architecture, identity or uuid.uuid4().bytes, *numbers
    )
    return header + bytes(4096 - len(header)) + table + bytes(_DATA_OFFSET - 4096 - len(table)) + data


class FakeApptainer:
    """Converts every image at once, or fails with the output it is told."""

    def __init__(self, *, version: str = "apptainer version 1.4.5") -> None:
        self.version = version
        self.images: dict[str, bytes] = {}
        self.failure: str | None = None
        self.on_build: Callable[[], None] = lambda: None
        self.builds: list[FakeCall] = []

    def runner(self) -> FakeCommandRunner:
        """A runner on whose host this is the `apptainer`."""
        return FakeCommandRunner({"apptainer": self})

    def __call__(self, call: FakeCall) -> FakeAnswer:
        if call.argv[1:] == ("--version",):
            return FakeAnswer(stdout=f"{self.version}\n")
        self.builds.append(call)
        destination, source = call.argv[-2:]
        self.on_build()
        if self.failure is not None:
            Path(destination).write_bytes(b"half a file")
            return FakeAnswer(returncode=255, stderr=self.failure)
        Path(destination).write_bytes(
            self.images.get(source) or sif_bytes(oci_config={"Entrypoint": ["./run"]})
        )
        return FakeAnswer(stdout="INFO:    Build complete\n")
