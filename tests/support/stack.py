"""The real stack as the tests see it: what `devstack/devstack up` wrote down."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DIRECTORY = "/var/tmp/girder-slurm-devstack"  # noqa: S108 - devstack's own default
_DEVSTACK = Path(__file__).parents[2] / "devstack" / "devstack"


@dataclass(frozen=True)
class Stack:
    """Addresses and credentials of a running stack."""

    env: dict[str, str]

    @classmethod
    def read(cls) -> Stack:
        """The stack of DEVSTACK_DIR; raises FileNotFoundError when none was ever started."""
        directory = Path(os.environ.get("DEVSTACK_DIR", DEFAULT_DIRECTORY))
        env = {}
        for line in (directory / "env").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name and not name.startswith("#"):
                env[name] = "".join(shlex.split(value))
        return cls(env)

    def __getitem__(self, name: str) -> str:
        return self.env[name]

    @property
    def user(self) -> str:
        """The unprivileged user that owns worker and jobs."""
        return self.env["DEVSTACK_USER"]

    @property
    def shared(self) -> Path:
        """The directory that worker and nodes share."""
        return Path(self.env["DEVSTACK_SHARED"])

    def service(self, action: str, *services: str) -> None:
        """`devstack start`, `stop` or `restart` of single services; raises CalledProcessError with what it said."""
        subprocess.run(
            [str(_DEVSTACK), action, *services],
            env={**os.environ, "DEVSTACK_DIR": self.env["DEVSTACK_DIR"], "DEVSTACK_USER": self.user},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def user_environment(self) -> dict[str, str]:
        """The environment of a login of that user, with the stack's programs on PATH."""
        return {
            "PATH": f"{self.env['DEVSTACK_PATH']}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": f"/home/{self.user}",
            "USER": self.user,
            "LOGNAME": self.user,
            "LANG": "C.UTF-8",
            "SLURM_CONF": self.env["SLURM_CONF"],
        }

    def as_user(self, argv: list[str]) -> list[str]:
        """The command line that runs this as the unprivileged user, from root or from that user itself."""
        if os.geteuid() != 0:
            return argv
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups", *argv]
