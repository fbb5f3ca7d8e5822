"""When a SIF was last used: the time of an empty file ``.used/NAME.sif`` beside it.

Whoever runs from a SIF stamps it when it takes it, and stamps it again every hour for as long as it may need it.
A SIF whose stamp is younger than a day is in use and is not removed. So nothing has to be given back, and a user
that died needs no cleaning up: its stamp grows old. The day is there for a worker that is down while its jobs run.
"""

from __future__ import annotations

import contextlib
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
        stamp.touch()
        os.utime(stamp, (now, now))


def last_used(sif: Path) -> float | None:
    """When the SIF was last used, in seconds since the epoch; None if that was never noted."""
    try:
        return stamp_path(sif).stat().st_mtime
    except OSError:
        return None


def stamp_path(sif: Path) -> Path:
    """The file whose time says when the SIF was last used."""
    return sif.parent / ".used" / sif.name
