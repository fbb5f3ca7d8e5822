"""The directory of all jobs, which several workers on one queue may share.

::

    <jobs root>/        0700
        root.json       which broker and queues it belongs to, and its short id
        record/         jobs that have not ended, one directory each
        ended/          jobs that have, kept for some days
        run/  spool/    see cluster/run_directory.py
        unhandled/      messages that could not be run here
        workers/        one lease per worker
        sif/  tmp/      images and scratch, unless set elsewhere
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from girder_worker_singularity.holder import Holder
from girder_worker_singularity.lease import STALE_AFTER_SECONDS, Lease, LeaseHeld, LeaseWatch, Standing
from girder_worker_slurm.errors import OwnershipLost, RecordDamaged, StartRefused
from girder_worker_slurm.job.state import JobState
from girder_worker_slurm.records.record import (
    Record,
    directory_name,
    json_text,
    newest_epoch,
    write_durably,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from urllib.parse import SplitResult

    from girder_worker_singularity.clock import Clock

logger = logging.getLogger(__name__)

_OWNER_LOOK_SECONDS = 30.0
_LEFTOVER_SECONDS = 86400.0
_DIRECTORIES = ("record", "ended", "run", "spool", "unhandled", "workers", "tmp")


def broker_identity(broker_url: str) -> str:
    """What a broker is known by, without user and password; it is the same one after TLS has been turned on."""
    parts = urlsplit(broker_url)
    return _identity(parts, 5672 if (parts.scheme, parts.port) == ("amqps", 5671) else parts.port)


def is_broker(noted: object, broker_url: str) -> bool:
    """Whether a jobs root that has noted this belongs to this broker; older versions noted the port of TLS."""
    parts = urlsplit(broker_url)
    return noted in (broker_identity(broker_url), _identity(parts, parts.port))


def _identity(parts: SplitResult, port: int | None) -> str:
    return f"{parts.hostname or ''}:{port or 5672}{parts.path or '/'}"


def _trouble(error: RecordDamaged) -> OSError | None:
    """What keeps a record from being read for a while; None if it is damaged, or has ended."""
    why = error.__cause__
    return why if isinstance(why, OSError) and not isinstance(why, FileNotFoundError) else None


class JobsRoot:
    """The jobs root, as one worker or the command line sees it."""

    def __init__(self, path: Path, worker_id: str) -> None:
        self.path = path
        self.worker_id = worker_id
        self.records = path / "record"
        self.ended = path / "ended"
        self.unhandled = path / "unhandled"
        self._lease: Lease | None = None
        self._others: dict[str, LeaseWatch] = {}
        self._absent_since: dict[str, float] = {}
        self._next_owner_look = 0.0
        #: Taken over, but not read yet.
        self._unread: deque[Record] = deque()

    def prepare(self) -> None:
        """Makes the directories; raises StartRefused when they cannot be made or written."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _DIRECTORIES:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            probe = self.path / "tmp" / f"probe-{uuid.uuid4().hex}"
            probe.write_text("probe", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            msg = f"The jobs root {self.path} cannot be used: {error.strerror} ({error.filename}). Set `root` in [jobs] to a directory this user can write."
            raise StartRefused(msg) from error

    def identify(self, broker_url: str, queues: Sequence[str]) -> str:
        """The root's short id; raises StartRefused when it belongs to another broker or other queues."""
        wanted = {"broker": broker_identity(broker_url), "queues": sorted(queues)}
        file = self.path / "root.json"
        if not file.exists():
            draft = file.with_name(f".root-{uuid.uuid4().hex}")
            write_durably(draft, json.dumps({"version": 1, "id": uuid.uuid4().hex[:6], **wanted}) + "\n")
            # Workers that start together: one of them names the root.
            with contextlib.suppress(FileExistsError):
                os.link(draft, file)
            draft.unlink()
        stored = json.loads(file.read_text(encoding="utf-8"))
        found = {"broker": stored.get("broker"), "queues": stored.get("queues")}
        if not is_broker(found["broker"], broker_url) or found["queues"] != wanted["queues"]:
            msg = (
                f"The jobs root {self.path} belongs to broker {found['broker']}, queues {found['queues']}; this worker"
                f" serves {wanted['broker']}, queues {wanted['queues']}. Give it a root of its own, or, if the broker"
                f" moved, edit {file}."
            )
            raise StartRefused(msg)
        return str(stored["id"])

    def token_prefix(self, root_id: str) -> str:
        """What the Slurm job names given out by this start of this worker begin with.

        The jobs of an earlier start may be another worker's by now.
        """
        start = hashlib.sha256(f"{self.worker_id} {uuid.uuid4().hex}".encode()).hexdigest()[:6]
        return f"gw-{root_id}{start}-"

    def live_tokens(self) -> set[str]:
        """The tokens of all jobs that have not ended, whichever worker carries them. Raises OSError rather than miss one."""
        return {record.state.token for record in self._load_all() if record.state.token}

    def lease(self, clock: Clock) -> Lease:
        """This worker's lease; raises StartRefused while another worker of the same name runs.

        One that cannot be seen from here, since its host was started again or it was in another container, is
        watched for a minute: nothing else tells whether it is dead, and every start would be refused for ever.
        """
        path = self.path / "workers" / directory_name(self.worker_id)
        try:
            self._lease = Lease.acquire(
                path,
                Holder.this_process(self.worker_id),
                clock,
                wait_seconds=2 * STALE_AFTER_SECONDS,
                unless_it_lives=True,
                on_wait=lambda holder: logger.warning(
                    "%s was not stopped properly, or still runs: the start waits up to %.0f s to see which",
                    holder,
                    STALE_AFTER_SECONDS,
                ),
            )
        except LeaseHeld as error:
            msg = (
                f"A worker named {self.worker_id} already serves {self.path}: {error.holder}. Stop it first, or give"
                " this one another `worker_id` in [jobs]."
            )
            raise StartRefused(msg) from error
        return self._lease

    def own_records(self) -> Iterator[Record]:
        """The records of jobs that this worker carries, taken over from whoever had its name before.

        One of that name may still run, frozen, and believe that it owns them.
        """
        with self._mark() as mark:
            yield from self._taken_over(lambda owner: owner == self.worker_id, mark)

    def _taken_over(self, is_wanted: Callable[[str], bool], mark: Path | None = None) -> Iterator[Record]:
        """Takes over the records of these owners, and reads each only then: until that moment its owner may write to it."""
        for name, epoch, owner in self._owners():
            if not is_wanted(owner):
                continue
            record = Record(self.records / name, name, self.worker_id, epoch, JobState())
            if record.take_over(mark):
                if owner != self.worker_id:
                    logger.warning("Job %s is taken over from worker %s", name, owner)
                self._unread.append(record)
                yield from self._read()

    def _read(self) -> Iterator[Record]:
        """The records that were taken over and can be read now. A file system may fail for a moment: then it is tried again."""
        for _ in range(len(self._unread)):
            unread = self._unread.popleft()
            try:
                unread.check_ownership()
                record = Record.load(unread.path, worker_id=self.worker_id, epoch=unread.epoch)
            except OwnershipLost:
                continue
            except RecordDamaged as error:
                logger.exception("The record %s is left alone", unread.path.name)
                if _trouble(error) is not None:
                    self._unread.append(unread)
                continue
            yield record

    @contextlib.contextmanager
    def _mark(self) -> Iterator[Path]:
        """A file with this worker's id, which becomes the owner file of what it takes over."""
        mark = self.path / "tmp" / f"owner-{uuid.uuid4().hex}"
        mark.write_text(self.worker_id, encoding="utf-8")
        mark.chmod(0o600)
        try:
            yield mark
        finally:
            mark.unlink(missing_ok=True)

    def orphaned_records(self, clock: Clock) -> Iterator[Record]:
        """Takes over the records of workers that are gone, and yields them. Ask every few seconds.

        Gone is a worker whose lease has gone stale, or that was stopped and has not come back for a minute.
        """
        yield from self._read()
        stale = self._stopped_workers(clock)
        for lease in (self.path / "workers").iterdir():
            if lease.name.startswith(".") or lease.name == directory_name(self.worker_id):
                continue
            watch = self._others.setdefault(lease.name, LeaseWatch(lease, clock))
            if watch.look() is Standing.STALE:
                stale.add(lease.name)
        if stale:
            yield from self._taken_over(lambda owner: directory_name(owner) in stale)

    def _stopped_workers(self, clock: Clock) -> set[str]:
        """Names of workers that have records but no lease, for a minute now."""
        now = clock.monotonic()
        if now < self._next_owner_look:
            return set()
        self._next_owner_look = now + _OWNER_LOOK_SECONDS
        owners = {directory_name(owner) for _, _, owner in self._owners()}
        absent = {name for name in owners if not (self.path / "workers" / name).exists()}
        absent.discard(directory_name(self.worker_id))
        self._absent_since = {name: self._absent_since.get(name, now) for name in absent}
        return {name for name, since in self._absent_since.items() if now - since >= STALE_AFTER_SECONDS}

    def _owners(self) -> Iterator[tuple[str, int, str]]:
        """The live jobs' directories, their epochs and who carries them, without reading the jobs themselves."""
        for name in sorted(os.listdir(self.records)):
            if name.startswith("."):
                continue
            path = self.records / name
            with contextlib.suppress(OSError):  # ended meanwhile
                epoch = newest_epoch(path)
                yield name, epoch, Record(path, name, self.worker_id, epoch, JobState()).owner()

    def remove_leftovers(self, clock: Clock) -> None:
        """Removes what a crash left half made: drafts of records, and events that nobody waits for any more."""
        old = clock.now() - _LEFTOVER_SECONDS
        live = None
        for path in (*self.records.glob(".new-*"), *(self.path / "spool").iterdir()):
            try:
                if path.stat().st_mtime > old:
                    continue
                if path.parent == self.records:
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                live = self.live_tokens() if live is None else live
                if path.name.lstrip(".").partition(".")[0] not in live:
                    path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("The leftover %s cannot be removed: %s", path, error)

    def _load_all(self) -> Iterator[Record]:
        """All live jobs, for reading only: most are others' to write. Raises OSError while one cannot be read."""
        for name in sorted(os.listdir(self.records)):
            if name.startswith("."):
                continue
            try:
                record = Record.load(self.records / name, worker_id=self.worker_id, repair=False)
            except RecordDamaged as error:
                if (trouble := _trouble(error)) is not None:
                    raise trouble from error
                logger.exception("The record %s is left alone", name)
                continue
            yield record

    def has(self, task_id: str) -> bool:
        """Whether this task was taken before, ended or not."""
        name = directory_name(task_id)
        return (self.records / name).exists() or (self.ended / name).exists()

    def find(self, text: str) -> list[Record]:
        """Records whose task id, Girder job id, Slurm job id or token is, or begins with, this text.

        Slurm jobs and tokens of earlier attempts count too.
        """
        found = []
        for record in self.all_records():
            state = record.state
            tokens = (state.token, *(earlier.token for earlier in state.earlier))
            names = (record.task_id, state.girder.job_id if state.girder else "", *tokens)
            slurm_jobs = (state.slurm_job_id, *(earlier.slurm_job_id for earlier in state.earlier))
            if text in slurm_jobs or any(name.startswith(text) for name in names if name):
                found.append(record)
        return found

    def all_records(self) -> Iterator[Record]:
        """All records, those of ended jobs last, each once; for reading only."""
        seen: set[str] = set()  # a job may end between the two listings
        for directory in (self.records, self.ended):
            for name in sorted(os.listdir(directory)) if directory.exists() else ():
                if name.startswith(".") or name in seen:
                    continue
                try:
                    record = Record.load(directory / name, worker_id=self.worker_id, repair=False)
                except RecordDamaged:
                    continue
                seen.add(name)
                yield record

    def end(self, record: Record) -> None:
        """Moves the record of an ended job to the ended ones."""
        target = self.ended / record.path.name
        if target.exists():
            shutil.rmtree(target)
        record.path.rename(target)
        record.path = target

    def keep_unhandled(self, message: Mapping[str, Any], why: str) -> Path:
        """Keeps a message that cannot be run here, for `girder-slurm requeue`; returns where."""
        directory = self.unhandled / directory_name(str(message.get("task_id") or uuid.uuid4().hex))
        directory.mkdir(mode=0o700, exist_ok=True)
        write_durably(directory / "message.json", json_text(message))
        write_durably(directory / "reason.txt", why + "\n", sync=False)
        return directory
