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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from girder_worker_singularity.lease import Holder, Lease, LeaseHeld, LeaseWatch, Standing
from girder_worker_slurm.errors import RecordDamaged, StartRefused
from girder_worker_slurm.records.record import Record, directory_name, json_text, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock

logger = logging.getLogger(__name__)

_DIRECTORIES = ("record", "ended", "run", "spool", "unhandled", "workers", "tmp")


def broker_identity(broker_url: str) -> str:
    """What a broker is known by, without user and password."""
    parts = urlsplit(broker_url)
    return f"{parts.hostname or ''}:{parts.port or 5672}{parts.path or '/'}"


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
        if found != wanted:
            msg = (
                f"The jobs root {self.path} belongs to broker {found['broker']}, queues {found['queues']}; this worker"
                f" serves {wanted['broker']}, queues {wanted['queues']}. Give it a root of its own, or, if the broker"
                f" moved, edit {file}."
            )
            raise StartRefused(msg)
        return str(stored["id"])

    def token_prefix(self, root_id: str) -> str:
        """What the Slurm job names of this worker begin with."""
        worker = hashlib.sha256(self.worker_id.encode()).hexdigest()[:4]
        return f"gw-{root_id}{worker}-"

    def lease(self, clock: Clock, *, wait_seconds: float = 0.0) -> Lease:
        """This worker's lease; raises StartRefused while another worker of the same name runs."""
        path = self.path / "workers" / directory_name(self.worker_id)
        try:
            self._lease = Lease.acquire(
                path, Holder.this_process(self.worker_id), clock, wait_seconds=wait_seconds
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
        for record in self._load_all():
            if record.owner() == self.worker_id and record.take_over():
                yield record

    def orphaned_records(self, clock: Clock) -> Iterator[Record]:
        """Takes over the records of workers whose lease has gone stale, and yields them. Ask every few seconds."""
        stale = set()
        for lease in (self.path / "workers").iterdir():
            if lease.name.startswith(".") or lease.name == directory_name(self.worker_id):
                continue
            watch = self._others.setdefault(lease.name, LeaseWatch(lease, clock))
            if watch.look() is Standing.STALE:
                stale.add(lease.name)
        for record in self._load_all() if stale else ():
            owner = record.owner()
            if directory_name(owner) in stale and record.take_over():
                logger.warning("Job %s is taken over from worker %s", record.task_id, owner)
                yield record

    def _load_all(self) -> Iterator[Record]:
        for name in sorted(os.listdir(self.records)):
            if name.startswith("."):
                continue
            try:
                record = Record.load(self.records / name, worker_id=self.worker_id)
            except RecordDamaged:
                logger.exception("The record %s is left alone", name)
                continue
            yield record

    def has(self, task_id: str) -> bool:
        """Whether this task was taken before, ended or not."""
        name = directory_name(task_id)
        return (self.records / name).exists() or (self.ended / name).exists()

    def find(self, text: str) -> list[Record]:
        """Records whose task id, Girder job id, Slurm job id or token is, or begins with, this text."""
        found = []
        for record in self.all_records():
            state = record.state
            names = (record.task_id, state.girder.job_id if state.girder else "", state.token)
            if state.slurm_job_id == text or any(name.startswith(text) for name in names if name):
                found.append(record)
        return found

    def all_records(self) -> Iterator[Record]:
        """All records, those of ended jobs last; for reading only."""
        for directory in (self.records, self.ended):
            for name in sorted(os.listdir(directory)) if directory.exists() else ():
                if name.startswith("."):
                    continue
                try:
                    yield Record.load(directory / name, worker_id=self.worker_id, repair=False)
                except RecordDamaged:
                    continue

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
