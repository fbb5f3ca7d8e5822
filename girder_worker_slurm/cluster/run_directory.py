"""Run directories and the event spool, as the worker reaches them when it and the jobs are one Unix user.

::

    <jobs root>/spool/                      <token>.<kind>.<attempt>.json, written by job scripts
    <jobs root>/run/<token>/                one attempt
        job.slurm  arguments  environment  nonce
        claim                               who has it: the job, or the worker that gave it up
        volume/                             inputs and outputs, mounted into the container
        scratch/                            /tmp of the container
        output.log  slurm.out               what the container, and what the script, printed
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_EVENT_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True)
class JobEvent:
    """What a job script left in the spool."""

    path: Path
    token: str
    kind: str
    slurm_job_id: str
    nonce: str
    fields: Mapping[str, Any]


class RunDirectories:
    """The run directories under one jobs root."""

    def __init__(self, jobs_root: Path, *, uid: int | None = None) -> None:
        self.root = jobs_root / "run"
        self.spool = jobs_root / "spool"
        self._uid = os.getuid() if uid is None else uid

    def prepare(self) -> None:
        """Makes the two directories; raises OSError when that is not possible."""
        for directory in (self.root, self.spool):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)

    def path(self, token: str) -> Path:
        """The directory of one attempt."""
        return self.root / token

    def create(self, token: str) -> Path:
        """A new run directory with its volume."""
        path = self.path(token)
        path.mkdir(mode=0o700)
        (path / "volume").mkdir(mode=0o700)
        return path

    def write(self, token: str, name: str, data: bytes, *, mode: int = 0o600) -> Path:
        """Writes one file of a run directory as a whole."""
        path = self.path(token) / name
        draft = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
        draft.rename(path)
        return path

    def claim(self, token: str, why: str) -> bool:
        """Takes the claim for the worker, so that no copy of the job can start any more.

        False when a job has it already. True as well when the run directory is gone: nothing can start there.
        """
        path = self.path(token)
        mine = path / f"claim.worker.{uuid.uuid4().hex}"
        try:
            mine.write_text(json.dumps({"by": "worker", "why": why}) + "\n", encoding="utf-8")
        except FileNotFoundError:
            return True
        with contextlib.suppress(OSError):
            os.link(mine, path / "claim")
        # Over NFS link may fail although it worked: being the same file is what counts.
        return mine.samefile(path / "claim") or self.claimed_by(token) == "worker"

    def claimed_by(self, token: str) -> str:
        """`job`, `worker`, or empty while nobody has the claim."""
        return str(self._claim(token).get("by", ""))

    def claimant(self, token: str) -> str:
        """The Slurm job id of the job that has the claim; empty if none has."""
        claim = self._claim(token)
        return str(claim.get("slurm_job_id", "")) if claim.get("by") == "job" else ""

    def _claim(self, token: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path(token) / "claim").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def events(self, is_wanted: Callable[[str], bool] | None = None) -> list[JobEvent]:
        """The complete events in the spool, of the tokens that are wanted.

        Files that are not events, or not this user's, are left alone.
        """
        events = []
        with os.scandir(self.spool) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and entry.name.endswith(".json")]
        if is_wanted is not None:
            names = [name for name in names if is_wanted(name.partition(".")[0])]
        for name in sorted(names):
            event = self._read_event(self.spool / name)
            if event is not None:
                events.append(event)
        return events

    def kept_events(self, token: str) -> list[JobEvent]:
        """The events of one attempt that were taken out of the spool before."""
        found = [self._read_event(path) for path in sorted(self.path(token).glob("event.*.json"))]
        return [event for event in found if event is not None]

    def keep(self, event: JobEvent) -> None:
        """Moves an event out of the spool into its run directory; without one, it is removed."""
        try:
            event.path.rename(self.path(event.token) / f"event.{event.path.name}")
        except FileNotFoundError:
            event.path.unlink(missing_ok=True)

    def remove_data(self, token: str) -> None:
        """Removes inputs, outputs, scratch, and the files that may hold secrets; log and script stay."""
        for name in ("volume", "scratch", "volumes"):
            _remove_tree(self.path(token) / name)
        for name in ("arguments", "environment", "nonce"):
            (self.path(token) / name).unlink(missing_ok=True)

    def remove(self, token: str) -> None:
        """Removes a whole run directory."""
        _remove_tree(self.path(token))

    def _read_event(self, path: Path) -> JobEvent | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            handle = os.fdopen(descriptor, "rb")
        except OSError:  # a directory
            os.close(descriptor)
            return None
        with handle:
            status = os.fstat(handle.fileno())
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid != self._uid
                or status.st_size > _EVENT_LIMIT_BYTES
            ):
                return None
            try:
                fields = json.loads(handle.read())
                return JobEvent(
                    path,
                    str(fields["token"]),
                    str(fields["kind"]),
                    str(fields["slurm_job_id"]),
                    str(fields["nonce"]),
                    fields,
                )
            except (ValueError, KeyError, TypeError, RecursionError):
                return None


def _remove_tree(path: Path) -> None:
    """Removes a tree in which a container may have left directories without write permission."""

    def make_writable(function: Any, name: str, _error: Any) -> None:
        parent = os.path.dirname(name)  # noqa: PTH120 - rmtree hands strings
        try:
            os.chmod(parent, 0o700)  # noqa: PTH101
            os.chmod(name, 0o700, follow_symlinks=False) if os.path.islink(name) else os.chmod(name, 0o700)  # noqa: PTH101, PTH114
            function(name)
        except OSError:
            shutil.rmtree(name, ignore_errors=True)

    if path.exists():
        shutil.rmtree(path, onerror=make_writable)
