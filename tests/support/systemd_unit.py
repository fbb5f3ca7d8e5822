"""A systemd service started from its unit, for machines whose init is not systemd: as far as tests need it."""

from __future__ import annotations

import re
import shlex
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: ProtectSystem=strict, PrivateTmp=yes and ReadWritePaths=, for what is mounted at /.
_ISOLATE = """
set -e
mount --bind / /
cd /
for place in $1; do mount --bind "$place" "$place"; done
mount -o remount,bind,ro /
mount -t tmpfs -o mode=1777 tmpfs /tmp
shift
exec /usr/sbin/chroot / "$@"
"""


@dataclass(frozen=True)
class Unit:
    """What a unit file says of one service."""

    path: Path

    def values(self, name: str) -> list[str]:
        """All values of one setting, in order; an empty one is a value too."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]

    def value(self, name: str) -> str:
        """The last value of a setting; raises IndexError if it is not there."""
        return self.values(name)[-1]

    def environment(self) -> dict[str, str]:
        """What the service finds in its environment: the unit's lines, then those of its file."""
        lines = [word for value in self.values("Environment") for word in shlex.split(value)]
        for file in self.values("EnvironmentFile"):
            text = Path(file.removeprefix("-")).read_text(encoding="utf-8")
            lines += [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def command(self) -> list[str]:
        """ExecStart with its variables and %% resolved; raises KeyError for a variable that nobody sets."""
        known = self.environment()
        words = [word.replace("%%", "%") for word in shlex.split(self.value("ExecStart"))]
        return [re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], word) for word in words]

    @contextmanager
    def running(self, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The service as its user, without capabilities, writing only where the unit allows; ended by SIGTERM.

        Needs root. Raises AssertionError if the service does not end within the unit's time.
        """
        user = self.value("User")
        become = [
            "setpriv", f"--reuid={user}", f"--regid={self.value('Group')}", "--init-groups", "--inh-caps=-all",
            "--bounding-set=-all", "--no-new-privs",
        ]  # fmt: skip
        own = {
            "HOME": "/nonexistent",
            "USER": user,
            "LOGNAME": user,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    "unshare", "--mount", "--propagation=private", "sh", "-c", _ISOLATE, "isolate",
                    self.value("ReadWritePaths"), *become, "env", f"--chdir={self.value('WorkingDirectory')}",
                    *self.command(),
                ],
                env=own | self.environment(), cwd="/", stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, umask=int(self.value("UMask"), 8), start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(float(self.value("TimeoutStopSec")))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)
                raise AssertionError(f"{self.path.name} did not end: {log.read_text()[-2000:]}") from None
