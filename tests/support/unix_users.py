"""Unix users of a test's own, whom jobs run as, and the line in sudoers that lets the worker. Needs root."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.self_undoing import SelfUndoing

if TYPE_CHECKING:
    from tests.support.stack import Stack

PROGRAM = Path(sys.executable).with_name("girder-slurm-files")


@dataclass
class UnixUsers(SelfUndoing):
    """Two users whom the worker may run jobs as, and one whom it may not. Use as a context manager."""

    stack: Stack
    base: Path = Path()
    ada: str = ""
    bob: str = ""
    eve: str = ""
    """Not in sudoers."""

    @property
    def run_root(self) -> str:
        """What `run_root` in [users] says."""
        return f"{self.base}/runs/{{user}}"

    @property
    def sif(self) -> Path:
        """A store of SIFs that all can read."""
        return self.base / "sif"

    def root_of(self, user: str) -> Path:
        """The user's run root."""
        return Path(self.run_root.replace("{user}", user))

    def run_as(self, user: str, line: str, *, check: bool = True) -> str:
        """What a line of bash prints to this user, errors included."""
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "bash", "-c", line]
        done = subprocess.run(
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            timeout=60,
        )
        if check and done.returncode != 0:
            msg = f"{user}: {line}: {done.returncode} {done.stdout}"
            raise AssertionError(msg)
        return done.stdout

    def _make(self, undo: contextlib.ExitStack) -> None:
        name = uuid.uuid4().hex[:6]
        self.base = Path(tempfile.mkdtemp(prefix="unix-users-", dir="/var/tmp"))
        undo.callback(shutil.rmtree, self.base, ignore_errors=True)
        self.ada, self.bob, self.eve = (_make_user(f"gw{who}{name}", undo) for who in ("ada", "bob", "eve"))
        self.base.chmod(0o755)
        (self.base / "runs").mkdir()
        (self.base / "runs").chmod(0o1777)
        self.sif.mkdir(mode=0o755)
        shutil.chown(self.sif, self.stack.user, self.stack.user)
        commands = ", ".join((*(str(shutil.which(name)) for name in ("sbatch", "scancel")), str(PROGRAM)))
        line = f"{self.stack.user} ALL=({self.ada},{self.bob}) NOPASSWD:SETENV: {commands}\n"
        sudoers = Path(f"/etc/sudoers.d/girder-slurm-tests-{name}")
        undo.callback(sudoers.unlink, missing_ok=True)
        sudoers.write_text(line, encoding="ascii")
        sudoers.chmod(0o440)


def _make_user(user: str, undo: contextlib.ExitStack) -> str:
    subprocess.run(
        ["useradd", "--create-home", "--user-group", user], check=True, capture_output=True, timeout=60
    )
    remove = ["userdel", "--force", "--remove", user]
    undo.callback(subprocess.run, remove, check=False, capture_output=True, timeout=60)
    return user
