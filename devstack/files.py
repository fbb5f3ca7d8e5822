"""Writes files and directories with exactly the owner and mode they should have."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def ensure_directory(path: Path, *, mode: int, owner: str = "root", group: str | None = None) -> None:
    """Make `path` a directory with this mode and owner; the parents must exist."""
    path.mkdir(mode=0o700, exist_ok=True)
    uid, gid = _ids(owner, group)
    entry = path.stat()
    if (entry.st_uid, entry.st_gid) != (uid, gid):
        os.chown(path, uid, gid)
    if entry.st_mode & 0o7777 != mode:
        path.chmod(mode)


def write_file(
    path: Path, text: str | bytes, *, mode: int, owner: str = "root", group: str | None = None
) -> None:
    """Replace `path` by this content in one step; an unchanged file is left alone."""
    content = text.encode() if isinstance(text, str) else text
    uid, gid = _ids(owner, group)
    if path.is_file():
        entry = path.stat()
        same_rights = (entry.st_uid, entry.st_gid, entry.st_mode & 0o7777) == (uid, gid, mode)
        if same_rights and path.read_bytes() == content:
            return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        os.fchown(stream.fileno(), uid, gid)
        os.fchmod(stream.fileno(), mode)
    draft.replace(path)


def _ids(owner: str, group: str | None) -> tuple[int, int]:
    entry = pwd.getpwnam(owner)
    return entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid
