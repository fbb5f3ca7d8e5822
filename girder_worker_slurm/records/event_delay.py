"""How late files of the nodes are seen on this side: measured by `girder-slurm doctor`, kept for the worker's start."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from girder_worker_slurm.records.record import write_durably

if TYPE_CHECKING:
    from pathlib import Path

#: How much longer than what was measured a job's own word is waited for, and the least it is.
_GRACE_FACTOR = 3
_LEAST_GRACE_SECONDS = 5


def grace_for(delay_seconds: float) -> int:
    """How long a job's own word should be waited for, at least, where files are seen so late."""
    return max(_LEAST_GRACE_SECONDS, math.ceil(_GRACE_FACTOR * delay_seconds))


def event_grace(jobs_root: Path, setting: float) -> float:
    """How long the worker waits for a job's own word: as it is set, or longer if that was found to be too short."""
    try:
        delay = json.loads(_file(jobs_root).read_text(encoding="utf-8"))["seconds"]
        return max(setting, float(grace_for(delay)))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return setting


def note_delay(jobs_root: Path, setting: float, delay_seconds: float, *, at: float) -> None:
    """Keeps what was measured where the setting is too short for it, instead of what was measured before.

    Raises OSError.
    """
    if grace_for(delay_seconds) > setting:
        measured = {"seconds": round(delay_seconds, 3), "measured_at": at}
        write_durably(_file(jobs_root), json.dumps(measured) + "\n")
    else:
        _file(jobs_root).unlink(missing_ok=True)


def _file(jobs_root: Path) -> Path:
    return jobs_root / "event-delay.json"
