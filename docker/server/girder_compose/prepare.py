"""Before all else: the directories of data get their owner, and .env has to be the one of these containers."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import dotenv

from .errors import SetupError

if TYPE_CHECKING:
    from .environment import Site

ENV_FILE = Path("/run/env")
PASSWORDS = ("rabbitmq_password", "mongodb_password", "girder_admin_password")


def check_env_file(text: str, site: Site) -> None:
    """Returns if the passwords of .env are those that these containers were made with; raises SetupError if not."""
    written = dotenv.dotenv_values(stream=io.StringIO(text))
    changed = [
        name.upper()
        for name in PASSWORDS
        if written.get(name.upper(), site.secret(name)) != site.secret(name)
    ]
    if changed:
        raise SetupError(
            f"{', '.join(changed)} in .env is not what these containers were made with; they keep theirs, and nothing was changed. "
            "If you changed .env on purpose: docker compose up -d --wait --force-recreate. "
            "If not: put the earlier value back, or see whether a variable of your shell hides it."
        )


def owner_of(text: str) -> tuple[int, int]:
    """The numbers in `UID:GID` or `UID`; raises SetupError for anything else."""
    user, _, group = text.partition(":")
    if not user.isdecimal() or not (group or user).isdecimal():
        raise SetupError(
            f"DSA_USER has to be UID:GID in numbers, as `id -u` and `id -g` say them, not `{text}`."
        )
    return int(user), int(group or user)


def give(directory: Path, user: int, group: int) -> bool:
    """Whether anything had to be changed. What is there already goes along; nothing outside, whatever links there are."""
    found = directory.stat()
    if (found.st_uid, found.st_gid) == (user, group):
        return False
    # The top last: should this be interrupted, the next start does it again.
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(Path(parent) / name, user, group, follow_symlinks=False)
    os.chown(directory, user, group)
    return True
