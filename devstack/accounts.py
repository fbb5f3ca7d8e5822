"""The two Unix accounts of a stack: one for the worker and the jobs, one for the services."""

from __future__ import annotations

import grp
import pwd
from contextlib import suppress
from typing import TYPE_CHECKING

from .commands import run
from .errors import CommandFailedError, DevstackError
from .processes import processes_of

if TYPE_CHECKING:
    from .layout import Layout
    from .report import Report
    from .state import State

_SYSTEM_ACCOUNT = (
    *("--system", "--user-group", "--no-create-home"),
    *("--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"),
)


def exists(account: str) -> bool:
    """Whether the machine knows the account."""
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


def group_of(account: str) -> str:
    """Name of the account's own group."""
    return grp.getgrgid(pwd.getpwnam(account).pw_gid).gr_name


def uids(state: State) -> list[int]:
    """The uids of the stack's accounts, as far as they exist; never root's."""
    names = (state.job_user, state.service_user)
    return [uid for name in names if exists(name) and (uid := pwd.getpwnam(name).pw_uid) != 0]


def ensure(state: State, layout: Layout, report: Report) -> None:
    """Make the accounts that are missing, and remember that it was us."""
    if "root" in (state.job_user, state.service_user):
        raise DevstackError("root cannot own the worker: choose another account with DEVSTACK_USER")
    for account, arguments in (
        (state.job_user, ["--create-home", "--shell", "/bin/bash"]),
        (state.service_user, [*_SYSTEM_ACCOUNT]),
    ):
        if exists(account):
            continue
        with report.step(f"account {account}: created"):
            remembered = state.created_accounts.get(account)
            # The files of a stack that was set up before belong to the old uid.
            same_uid = ["--uid", str(remembered)] if remembered is not None else []
            run(["/usr/sbin/useradd", *arguments, *same_uid, account])
            state.created_accounts[account] = pwd.getpwnam(account).pw_uid
            state.save(layout)


def remove_created(state: State, report: Report) -> None:
    """Remove the accounts that `ensure` made, unless something still runs as them."""
    for account in state.created_accounts:
        if not exists(account):
            continue
        if processes_of(pwd.getpwnam(account).pw_uid):
            report.line(f"account {account}: kept, because processes run as it (another stack?)")
            continue
        try:
            # Without --remove it would leave the home; with it, userdel complains of a missing mail file.
            run(["/usr/sbin/userdel", "--remove", account])
        except CommandFailedError as error:
            if exists(account):
                report.line(f"account {account}: kept: {error}")
                continue
        with suppress(CommandFailedError, KeyError):
            grp.getgrnam(account)
            run(["/usr/sbin/groupdel", account])
        report.line(f"account {account}: removed")
