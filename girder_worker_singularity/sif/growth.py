"""How many bytes of a conversion are there already, seen in the directories in which Apptainer works.

Where it puts them (seen: 1.4.5): parts of an image in `blobs/sha256` of its temporary directory, or of the cache if one
is kept, each named by its digest with some digits after it until it is whole; what a Docker engine saves before that as
`NUMBER.tar`; then the file system of the SIF as
`squashfs-...` in the temporary directory, which is copied to the SIF at last.

Only for the eye of who waits. It never fails a conversion, and says nothing rather than something wrong.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.sif.progress import Transfer, conversion_phase, phase_with_bytes
from girder_worker_singularity.source.origin import ExpectedBytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from girder_worker_singularity.clock import Clock

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 2.0
_BLOBS_BELOW_TMP = ("bundle-temp-*/layout-*/blobs/sha256", "oras-tmp-*/blobs/sha256")
_SAVED_BELOW_TMP = "bundle-temp-*/*.tar"
_BLOBS_BELOW_CACHE = "cache/blob/blobs/sha256"


@dataclass(frozen=True)
class Places:
    """Where a conversion puts its bytes."""

    destination: Path
    build_dir: Path | None
    """None if it works in a directory of another host."""
    cache_dir: Path | None = None


class Growth:
    """Follows one conversion: hears its lines, looks at its files now and then, and tells of bytes."""

    def __init__(
        self,
        places: Places,
        tell: Callable[[str], None],
        clock: Clock,
        *,
        expected: Callable[[], ExpectedBytes | None],
    ) -> None:
        self._places = places
        self._tell = tell
        self._clock = clock
        self._expected = expected
        self._phase = ""
        self._most = 0
        self._next = 0.0

    def hear(self, line: str) -> None:
        """Takes notice of a line of Apptainer, which says in which phase it is."""
        phase = conversion_phase(line)
        if phase is not None and phase != self._phase:
            self._phase, self._most = phase, 0

    def look(self) -> None:
        """Tells how many bytes are there, if it is time for that and there are more than before."""
        doing, now = phase_with_bytes(self._phase), self._clock.monotonic()
        if doing is None or now < self._next:
            return
        self._next = now + _EVERY_SECONDS
        transfer = None
        try:
            if doing == "writing":
                transfer = Transfer(doing, written_bytes(self._places))
            else:
                transfer = fetched(self._places, self._expected() or ExpectedBytes())
        except Exception:
            logger.exception("How far a conversion is cannot be seen; it goes on")
        if transfer is not None and transfer.done > self._most:
            self._most = transfer.done
            self._tell(transfer.line)


def fetched(places: Places, expected: ExpectedBytes) -> Transfer:
    """How much of an image has been fetched."""
    if places.build_dir is None:
        # What the other host has is not seen here; a finished SIF may be fetched straight to its place.
        return Transfer("fetching", size_of(places.destination))
    found: dict[str, int] = {}
    directories = [directory for pattern in _BLOBS_BELOW_TMP for directory in places.build_dir.glob(pattern)]
    if places.cache_dir is not None and expected.parts:  # the cache holds parts of other images, too
        directories.append(places.cache_dir / _BLOBS_BELOW_CACHE)
    for directory in directories:
        for name, size in _files(directory):
            digest = f"sha256:{name[:64]}"
            if not expected.parts or digest in expected.parts:
                found[digest] = max(found.get(digest, 0), size)
    if not expected.parts:
        saved = sum(size_of(path) for path in places.build_dir.glob(_SAVED_BELOW_TMP))
        done = max(sum(found.values()), saved, size_of(places.destination))
        return Transfer(
            "fetching", done if expected.total is None else min(done, expected.total), expected.total
        )
    total = sum(expected.parts.values())
    if size_of(places.destination) > 0:  # a finished SIF is moved there when it is whole
        return Transfer("fetching", total, total)
    return Transfer("fetching", sum(min(size, expected.parts[name]) for name, size in found.items()), total)


def written_bytes(places: Places) -> int:
    """How much of the SIF is written: of its file system first, which then is copied to the SIF."""
    sizes = [size_of(places.destination)]
    if places.build_dir is not None:
        sizes += [size_of(path) for path in places.build_dir.glob("bundle-temp-*/squashfs-*")]
    return max(sizes)


def size_of(path: Path) -> int:
    """The bytes of a file, 0 if there is none; opened, because a network file system then looks anew."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError:
        return 0


def _files(directory: Path) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # renamed meanwhile, because it is whole
                yield entry.name, entry.stat(follow_symlinks=False).st_size
