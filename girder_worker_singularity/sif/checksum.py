"""Whether a SIF still is what was made: by its time at once, and by a checksum where that is another.

A checksum of several gigabytes takes seconds to minutes, so it is taken when a SIF is made, and again only if the file
was written to since (its time of modification is another than the noted one), once per process.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from girder_worker_singularity.sif.file import read_sif
from girder_worker_singularity.sif.note import read_note

if TYPE_CHECKING:
    from pathlib import Path

    from girder_worker_singularity.sif.note import SifNote

_PIECE_BYTES = 4 * 1024**2


def sha256_of(path: Path) -> str:
    """The checksum of all that is in the file, in hexadecimal digits."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            checksum.update(piece)
    return checksum.hexdigest()


def modified(path: Path) -> int:
    """When the file was last written to, in whole seconds since the epoch, as far as all file systems keep it."""
    return int(path.stat().st_mtime)


def contents_problem(path: Path) -> str:
    """Why the contents of this SIF are not those that were made; empty if they are, or if none were noted.

    Reads all of the file. Raises SifDamaged and FileNotFoundError.
    """
    note = read_note(path)
    if note is None or not note.sha256 or note.identity != read_sif(path).identity:
        return ""
    return "" if sha256_of(path) == note.sha256 else CHANGED


CHANGED = "its contents were changed since it was made"


class SoundFiles:
    """Remembers which files that were written to since they were made turned out to be whole all the same."""

    def __init__(self) -> None:
        self._checked: dict[Path, tuple[str, int]] = {}

    def is_sound(self, path: Path, note: SifNote) -> bool:
        """Whether this file, of which the note speaks, holds what was made; mostly without reading it."""
        when = modified(path)
        if not note.sha256 or when == note.modified or self._checked.get(path) == (note.sha256, when):
            return True
        if sha256_of(path) != note.sha256:
            return False
        self._checked[path] = (note.sha256, when)
        return True
