"""Removing what programs in containers leave behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def remove_tree(directory: Path) -> None:
    """Removes a directory with all that is in it, as far as this user may; nothing happens if there is none.

    Also directories that their owner may not read or write: images hold such, and programs make them.
    """
    _open(directory)
    for parent, names, _files in os.walk(directory):
        for name in names:
            _open(Path(parent, name))
    shutil.rmtree(directory, ignore_errors=True)


def _open(directory: Path) -> None:
    with contextlib.suppress(OSError):  # another user's, in a container with several
        if not directory.is_symlink():
            directory.chmod(0o700)
