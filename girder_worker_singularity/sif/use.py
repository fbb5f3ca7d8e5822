"""When a SIF was last used: a time in seconds since the epoch in the file ``.used/NAME.sif`` beside it.

Whoever runs from a SIF stamps it when it takes it, and stamps it again every hour for as long as it may need it.
A SIF whose stamp is younger than a day is in use and is not removed. So nothing has to be given back, and a user
that died needs no cleaning up: its stamp grows old. The day is there for a worker that is down while its jobs run.

Stamp and SIF are looked at by several hosts, whose mounts may answer from memory when they are asked for the time
or the existence of a file. What a file holds and what a directory lists they fetch anew when it is opened.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from girder_worker_singularity.clock import Clock

STAMP_EVERY_SECONDS = 3600.0
"""How often whoever uses a SIF stamps it."""
IN_USE_SECONDS = 24 * 3600.0
"""How long after its last stamp a SIF counts as being in use."""


def take(sif: Path, clock: Clock) -> bool:
    """Notes that this SIF is used now; False if it has just been removed, so that it has to be asked for again.

    In this order, because whoever removes a SIF first moves it away and then looks at the stamp once more.
    """
    note_use(sif, clock)
    try:
        return sif.name in os.listdir(sif.parent)
    except PermissionError:  # a directory that may be passed through but not listed
        return sif.exists()


def note_use(sif: Path, clock: Clock) -> None:
    """Stamps the SIF, unless that was done within the hour. A store that can only be read is left as it is."""
    last = last_used(sif)
    now = clock.now()
    if last is not None and 0 <= now - last < STAMP_EVERY_SECONDS:
        return
    stamp = stamp_path(sif)
    with contextlib.suppress(OSError):
        stamp.parent.mkdir(exist_ok=True)
        # Written over in place, always as long: whoever reads it meanwhile finds the one time or the other.
        with os.fdopen(os.open(stamp, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
            file.write(f"{now:024.9f}\n".encode())
        os.utime(stamp, (now, now))


def last_used(sif: Path) -> float | None:
    """When the SIF was last used, in seconds since the epoch; None if that was never noted."""
    try:
        with stamp_path(sif).open("rb") as file:
            return _seconds(file.read(64)) or os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _seconds(content: bytes) -> float | None:
    try:
        seconds = float(content)
    except ValueError:  # an empty stamp counts by its time
        return None
    return seconds if math.isfinite(seconds) else None


def stamp_path(sif: Path) -> Path:
    """The file that says when the SIF was last used."""
    return sif.parent / ".used" / sif.name
