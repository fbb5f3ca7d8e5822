"""How programs are started as another Unix user: through setpriv where the worker is root, else through sudo."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The user's own, which sudo sets and setpriv leaves alone.
_OF_THE_USER = ("HOME", "USER", "LOGNAME", "SHELL")
#: What only the user in whose name it was made can use.
_NOT_HANDED_ON = (*_OF_THE_USER, "KRB5CCNAME", "MAIL", "XDG_RUNTIME_DIR")
_REFUSED = re.compile(r"^sudo: ", re.MULTILINE)


#: For how long an account that was here is waited for.
_REMEMBERED_SECONDS = 86400.0
_CLOCK = SystemClock()
#: When each was seen, by the monotonic clock.
_seen: dict[str, float] = {}


class AccountAway(OSError):
    """An account that was here is not found: a directory service does not answer, most likely. To be tried again."""


def own_name() -> str:
    """The worker's own Unix user; its number if it has no name."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def account_of(user: str) -> pwd.struct_passwd:
    """The account of a Unix user; raises KeyError if there is none of that name here, AccountAway if there was one today.

    The C library does not tell an account that is not there from a directory service that does not answer (getpwnam(3)).
    """
    now = _CLOCK.monotonic()
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        if now - _seen.get(user, -_REMEMBERED_SECONDS) < _REMEMBERED_SECONDS:
            msg = f"The Unix user {user}, who was known here today, is not found now. Does the directory service (LDAP, SSSD) answer?"
            raise AccountAway(msg) from None
        raise
    _seen[user] = now
    return account


def uid_of(user: str) -> int | None:
    """The number of a Unix user; None if there is none of that name here. Raises AccountAway if there was one today."""
    try:
        return account_of(user).pw_uid
    except KeyError:
        return None


@dataclass(frozen=True)
class RunAs:
    """Makes the command line and the environment of programs that other users are to run."""

    is_root: bool
    """Whether the worker is root, which needs no sudo."""

    @classmethod
    def here(cls) -> RunAs:
        """For this process."""
        return cls(os.geteuid() == 0)

    def command(
        self, user: str, argv: Sequence[str], environment: Mapping[str, str], *, path: str = ""
    ) -> tuple[list[str], dict[str, str]]:
        """What to start, with which environment, so that `user` runs `argv` with these variables and a home of their own.

        Programs are looked for in `path`; empty: in the PATH among the variables.

        The program is named by its full path, which is what a line in sudoers is about. Raises KeyError for a user who
        does not exist here, AccountAway for one who was here today.
        """
        account = account_of(user)
        path = path or environment.get("PATH", os.defpath)
        program = shutil.which(argv[0], path=path) or argv[0]
        handed_on = {name: value for name, value in environment.items() if name not in _NOT_HANDED_ON}
        if self.is_root:
            own = dict(zip(_OF_THE_USER, (account.pw_dir, user, user, account.pw_shell), strict=True))
            numbers = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups"]
            start = [shutil.which("setpriv", path=path) or "setpriv", *numbers, "--inh-caps=-all"]
            return [*start, program, *argv[1:]], {**handed_on, **own}
        sudo = shutil.which("sudo", path=path) or "sudo"
        variables = [f"{name}={value}" for name, value in handed_on.items()]
        return [sudo, "-n", "-H", "-u", user, *variables, program, *argv[1:]], dict(environment)


def sudo_refusal(stderr: str) -> str:
    """Why sudo did not start the program; empty if it did."""
    if not _REFUSED.search(stderr):
        return ""
    return " ".join(line.strip() for line in stderr.splitlines() if line.strip())[-300:]
