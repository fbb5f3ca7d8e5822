"""As which Unix users jobs may run, whatever the mapping of users says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from girder_worker_slurm.errors import UserRefused

_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class UnixUserRules:
    """The site's list of them."""

    allowed: tuple[str, ...] = ()
    """Names, or patterns of names (`*`)."""
    minimum_uid: int = 1000
    """Accounts with a lower number are those of services: only a name allows them, no pattern."""

    def check(self, name: str, uid: int | None) -> None:
        """Raises UserRefused if no job may run as this user; `uid` is their number here, None if there are none."""
        if uid is None:
            what = "there is no such user on the worker's machine"
        elif uid == 0:
            what = "that is root"
        elif name in self.allowed:
            return
        elif not any(_PATTERN & set(entry) and fnmatchcase(name, entry) for entry in self.allowed):
            what = "`unix_users` in [users] does not have them"
        elif uid < self.minimum_uid:
            what = (
                f"their number {uid} is below `minimum_uid` in [users], and `unix_users` does not name them"
            )
        else:
            return
        msg = f"By the site's mapping of users this job is to run as the Unix user {name}, as whom none may: {what}. Ask the administrator."
        raise UserRefused(msg)
