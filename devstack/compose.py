"""Docker's compose, version 2: the machine's own, or Debian's package unpacked into a private prefix."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import run, succeeds
from .errors import DevstackError
from .newer_suites import download, machine_is
from .packages import apt_get, apt_knows

if TYPE_CHECKING:
    from .service import Context

_PLUGIN = "usr/libexec/docker/cli-plugins/docker-compose"
_PLACES = (Path("/") / _PLUGIN, Path("/usr/lib/docker/cli-plugins/docker-compose"))
_OTHER_NAME = "docker-compose-v2"  # Ubuntu's


class Compose:
    """Not a service: a program that tests run against an engine of their own. Same `install` as the services have."""

    name = "compose"

    def __init__(self, context: Context) -> None:
        self._context = context
        self._private = context.layout.below("opt", "compose", "docker-compose")

    def install(self) -> None:
        """Has a compose of version 2 on disk, from whatever source this machine has."""
        if self.program() is None:
            with self._context.report.step("compose: installed"):
                if machine_is("debian"):
                    self._install_privately()
                elif apt_knows(_OTHER_NAME):
                    apt_get("install", "--yes", "--no-install-recommends", _OTHER_NAME, timeout_seconds=600)
        if self.program() is None:
            raise DevstackError(
                "compose: not in this machine's package source: install Docker's compose plugin"
            )

    def program(self) -> Path | None:
        """The program, which needs no `docker` in front of it; None if there is none of version 2."""
        for candidate in (*_PLACES, self._private):
            if candidate.exists() and succeeds([candidate, "version"]):
                return candidate
        return None

    def _install_privately(self) -> None:
        work = self._context.layout.below("opt", "compose-build")
        shutil.rmtree(work, ignore_errors=True)
        download(self._context.layout, ["docker-compose/trixie"], work / "packages")
        for package in (work / "packages").glob("*.deb"):
            run(["/usr/bin/dpkg-deb", "--extract", package, work / "x"])
        self._private.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(work / "x" / _PLUGIN, self._private)
        shutil.rmtree(work)
