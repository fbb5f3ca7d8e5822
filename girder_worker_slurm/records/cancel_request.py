"""A wish of somebody at the command line: a file in a job's record, which the worker that carries the job honours."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from typing import TYPE_CHECKING

from girder_worker_slurm.records.record import write_durably

if TYPE_CHECKING:
    from pathlib import Path

#: In the record directory, beside ``state.jsonl``.
FILE_NAME = "cancel-requested"
#: In the directory of all records. It changes with each wish, so that a worker of thousands of jobs looks at one file.
_NEWS = ".cancels"
#: What is said of a wish that does not tell whose it is.
_UNSIGNED = "with girder-slurm"


def request_cancel(record: Path, *, who: str, at: str) -> None:
    """Leaves the wish; raises OSError when the record is gone or belongs to somebody else."""
    owner = record.stat()
    _write(record / FILE_NAME, json.dumps({"who": who, "at": at}) + "\n", owner)
    # Afterwards: who sees the news finds the wish.
    _write(record.parent / _NEWS, f"{uuid.uuid4().hex}\n", owner)


def cancel_news(records: Path) -> str:
    """A word that is another one after each wish, whichever job it is about; empty where it cannot be read."""
    try:
        return (records / _NEWS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _write(path: Path, text: str, owner: os.stat_result) -> None:
    write_durably(path, text)
    if os.geteuid() == 0:
        # Left by root among the files of the worker's user, who must be able to read it.
        with contextlib.suppress(OSError):
            os.chown(path, owner.st_uid, owner.st_gid)


def cancel_request(record: Path) -> str:
    """Who wishes this job cancelled, as `cancel` entries say why; empty if nobody does."""
    try:
        wish = json.loads((record / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except ValueError:
        return _UNSIGNED
    except OSError:
        # A disk in trouble, an expired ticket, or no file left to open, is nobody's wish.
        return _UNSIGNED if os.path.lexists(record / FILE_NAME) else ""
    who = wish.get("who") if isinstance(wish, dict) else None
    return f"with girder-slurm by {who}" if who else _UNSIGNED
