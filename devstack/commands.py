"""Runs short commands: always an argv list, always a timeout, optionally as another account."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from typing import TYPE_CHECKING

from .errors import CommandFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def clean_environment(account: str, home: Path | None = None) -> dict[str, str]:
    """The smallest environment that programs of `account` work with; nothing of the caller's leaks in."""
    entry = pwd.getpwnam(account)
    return {
        "PATH": SYSTEM_PATH,
        "HOME": str(home) if home else entry.pw_dir,
        "USER": account,
        "LOGNAME": account,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
    }


class Identity:
    """User, group and supplementary groups of an account, ready for `subprocess`."""

    def __init__(self, account: str) -> None:
        entry = pwd.getpwnam(account)
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.groups = os.getgrouplist(account, entry.pw_gid)

    @property
    def is_ours(self) -> bool:
        """True when no change of identity is needed (or possible)."""
        return os.geteuid() == self.uid


def run(
    argv: Sequence[object],
    *,
    timeout_seconds: float = 60,
    account: str | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Standard output of a command that ended with 0; otherwise CommandFailedError with its last words."""
    words = [str(word) for word in argv]
    identity = Identity(account) if account else None
    if environment is None and account:
        environment = clean_environment(account)
    changes_identity = identity is not None and not identity.is_ours
    try:
        done = subprocess.run(
            words,
            timeout=timeout_seconds,
            env=dict(environment) if environment is not None else None,
            cwd=cwd or "/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            user=identity.uid if identity and changes_identity else None,
            group=identity.gid if identity and changes_identity else None,
            extra_groups=identity.groups if identity and changes_identity else None,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailedError(f"no answer in {timeout_seconds:.0f} s from: {_brief(words)}") from error
    except OSError as error:
        raise CommandFailedError(f"cannot run {words[0]}: {error.strerror or error}") from error
    if done.returncode != 0:
        raise CommandFailedError(
            f"exit code {done.returncode} from: {_brief(words)}: {last_words(done.stderr + done.stdout)}"
        )
    return done.stdout


def succeeds(argv: Sequence[object], *, timeout_seconds: float = 60, account: str | None = None) -> bool:
    """Whether the command could be run and ended with 0."""
    try:
        run(argv, timeout_seconds=timeout_seconds, account=account)
    except CommandFailedError:
        return False
    return True


def last_words(text: str, *, lines: int = 3, characters: int = 500) -> str:
    """The last non-empty lines of a program's output as one line."""
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(kept[-lines:])[-characters:] or "(it printed nothing)"


def _brief(words: Sequence[str]) -> str:
    return shlex.join(words)[:200]
