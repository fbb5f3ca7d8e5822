"""One job's record: a directory that only the worker reads and writes.

::

    record/<task id>/
        message.json     the task message as it came, written once
        state.jsonl      what happened, one entry per line (see job/state.py)
        owner.<epoch>    which worker carries the job; the highest epoch counts
        log.json         how much of the log Girder has (see girder/log_feed.py)
        girder.log       what Girder's log of this job consists of

Directories are 0700 and files 0600: the message holds tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import OwnershipLost, RecordDamaged
from girder_worker_slurm.job.state import JobState, apply, fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from girder_worker_slurm.job.state import Verdict

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def directory_name(task_id: str) -> str:
    """A directory name for a task id, which may be any text a Celery caller chose."""
    if _SAFE_NAME.fullmatch(task_id):
        return task_id
    return "h-" + hashlib.sha256(task_id.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def json_text(value: Mapping[str, Any]) -> str:
    """JSON that people can read, and that every file can hold: text may have lone surrogates from a broken sender."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=str)
    return text


def write_durably(path: Path, text: str, *, sync: bool = True) -> None:
    """Replaces a file as a whole: a reader sees the old or the new text, also after a crash."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Record:
    """One record, and the state that its entries add up to."""

    __slots__ = ("epoch", "path", "state", "task_id", "worker_id")

    def __init__(self, path: Path, task_id: str, worker_id: str, epoch: int, state: JobState) -> None:
        self.path = path
        self.task_id = task_id
        self.worker_id = worker_id
        self.epoch = epoch
        self.state = state

    @classmethod
    def create(cls, parent: Path, message: Mapping[str, Any], *, worker_id: str, at: float) -> Record | None:
        """A new record that is on disk once `sync_directory(parent)` returns; None if there is one already.

        `message` must have `task_id`. Raises OSError when the disk refuses: nothing is left behind then.
        """
        task_id = str(message["task_id"])
        path = parent / directory_name(task_id)
        if path.exists():
            return None
        temporary = parent / f".new-{uuid.uuid4().hex}"
        temporary.mkdir(mode=0o700)
        try:
            accepted = {"event": "accepted", "at": at}
            for name, text, sync in (
                ("message.json", json_text(message), True),
                ("state.jsonl", json.dumps(accepted) + "\n", False),
                ("owner.1", worker_id, False),
            ):
                descriptor = os.open(temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                    handle.write(text)
                    handle.flush()
                    if sync:
                        os.fsync(handle.fileno())
            try:
                temporary.rename(path)
            except OSError:
                if path.exists():
                    shutil.rmtree(temporary, ignore_errors=True)
                    return None
                raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls(path, task_id, worker_id, 1, fold([accepted]))

    @classmethod
    def load(cls, path: Path, *, worker_id: str, repair: bool = True, epoch: int | None = None) -> Record:
        """The record in a directory; raises RecordDamaged when it cannot be understood.

        Without `repair` nothing is changed on disk: for whoever reads while the owner writes. Whoever knows the highest
        epoch saves a listing.
        """
        try:
            epoch = newest_epoch(path) if epoch is None else epoch
            entries = read_entries(path / "state.jsonl", repair=repair)
            # A power cut between message and state leaves an empty state; the message is what was made durable.
            first = next(entries, None) or {"event": "accepted", "at": path.stat().st_mtime}
            state = fold(itertools.chain([first], entries))
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"Record {path} cannot be read: {type(error).__name__}: {error}."
            raise RecordDamaged(msg) from error
        record = cls(path, path.name, worker_id, epoch, state)
        if path.name.startswith("h-"):
            record.task_id = str(record.message()["task_id"])
        return record

    def message(self) -> dict[str, Any]:
        """The task message as it was taken from the broker."""
        try:
            message = json.loads((self.path / "message.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"Record {self.path}: message.json cannot be read: {error}."
            raise RecordDamaged(msg) from error
        if not isinstance(message, dict):
            msg = f"Record {self.path}: message.json is not an object."
            raise RecordDamaged(msg)
        return message

    def owner(self) -> str:
        """The worker that carries this job, by its highest owner file."""
        try:
            return (self.path / f"owner.{self.epoch}").read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def take_over(self, mark: Path | None = None) -> bool:
        """Makes this worker the owner; False when another one was faster.

        `mark` is a file with the worker's id in the same file system: where thousands are taken over, a link to it costs
        half as much as a file for each.
        """
        if mark is not None:
            try:
                return self._link_owner(mark)
            except OSError:
                # It has all the links that this file system allows, or somebody has tidied up: a file of its own will do.
                pass
        claim = self.path / f".owner-{uuid.uuid4().hex}"
        claim.write_text(self.worker_id, encoding="utf-8")
        try:
            return self._link_owner(claim)
        finally:
            claim.unlink(missing_ok=True)

    def _link_owner(self, mark: Path) -> bool:
        try:
            os.link(mark, self.path / f"owner.{self.epoch + 1}")
        except FileExistsError:
            return False
        self.epoch += 1
        return True

    def check_ownership(self) -> None:
        """Raises OwnershipLost when another worker has taken the job over; call before any outside effect."""
        if os.path.lexists(self.path / f"owner.{self.epoch + 1}"):
            msg = f"Job {self.task_id} belongs to another worker now (epoch {self.epoch + 1})."
            raise OwnershipLost(msg)

    def decide(self, verdict: Verdict) -> JobState:
        """Records how the job ended."""
        return self.append("verdict", **verdict.as_entry())  # type: ignore[arg-type]  # none of them is `durable`

    def append(self, event: str, *, durable: bool = False, **fields: Any) -> JobState:
        """Records one entry and returns the new state; with `durable` it survives a power cut."""
        self.check_ownership()
        entry = {"event": event, **fields}
        line = json_text(entry) + "\n"
        descriptor = os.open(self.path / "state.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            try:
                data = line.encode("utf-8")
                while data:
                    data = data[os.write(descriptor, data) :]
                if durable:
                    os.fsync(descriptor)
            except OSError:
                # Half a line, from a full disk, must not stand in front of the next one.
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        self.state = apply(self.state, entry)
        return self.state


def newest_epoch(path: Path) -> int:
    """The highest epoch in a record's directory; 0 if nobody owns it. Raises OSError."""
    names = (name for name in os.listdir(path) if name.startswith("owner."))
    return max((int(name[6:]) for name in names if name[6:].isdecimal()), default=0)


def read_entries(path: Path, *, repair: bool = True) -> Iterator[dict[str, Any]]:
    """The entries of a state file, one by one: a job with 100,000 output files has 300,000 of them.

    A half-written last line, as a crash leaves it, is cut off the file at the end. Without `repair` it is only passed
    over: its writer may be about to finish it. Raises RecordDamaged.
    """
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return
    position = 0
    with handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
            except ValueError as error:
                if b"\n" not in handle.read():
                    break
                msg = f"{path}: damaged at byte {position}."
                raise RecordDamaged(msg) from error
            if isinstance(entry, dict):
                yield entry
            position += len(line)
        else:
            return
    if repair:
        os.truncate(path, position)
