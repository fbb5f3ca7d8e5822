"""A wish of somebody at the command line: a file in a job's record, which the worker that carries the job honours."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from girder_worker_slurm.records.record import write_durably

if TYPE_CHECKING:
    from pathlib import Path

#: In the record directory, beside ``state.jsonl``.
FILE_NAME = "cancel-requested"


def request_cancel(record: Path, *, who: str, at: str) -> None:
    """Leaves the wish; raises OSError when the record is gone or belongs to somebody else."""
    path = record / FILE_NAME
    write_durably(path, json.dumps({"who": who, "at": at}) + "\n")
    if os.geteuid() == 0:
        # Left by root in the record of the worker's user, who must be able to read it.
        owner = record.stat()
        with contextlib.suppress(OSError):
            os.chown(path, owner.st_uid, owner.st_gid)


def cancel_request(record: Path) -> str:
    """Who wishes this job cancelled, as `cancel` entries say why; empty if nobody does."""
    try:
        wish = json.loads((record / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        return "with girder-slurm"
    who = wish.get("who") if isinstance(wish, dict) else None
    return f"with girder-slurm by {who}" if who else "with girder-slurm"
