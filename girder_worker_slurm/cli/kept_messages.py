"""The messages that could not be run here, as they lie in ``unhandled/`` of the jobs root."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.celery_worker.message import REQUEUED_HEADER, body_bytes
from girder_worker_slurm.cli.answers import Refusal, Unclear
from girder_worker_slurm.cli.job_view import iso

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from girder_worker_slurm.doctor.broker_connection import BrokerConnection
    from girder_worker_slurm.records.jobs_root import JobsRoot


@dataclass(frozen=True)
class KeptMessage:
    """One message that waits for somebody."""

    path: Path
    task: str
    queue: str
    kept_at: str
    reason: str

    @property
    def message_id(self) -> str:
        """What it is called: the task id, or a name made from it."""
        return self.path.name

    def as_json(self) -> dict[str, str]:
        """The message for machines, without its content, which holds tokens."""
        shown = asdict(self)
        shown["path"] = str(self.path)
        return {"id": self.message_id, **shown}

    def content(self) -> dict[str, Any]:
        """The stored message; raises Refusal if it is damaged."""
        try:
            stored = json.loads((self.path / "message.json").read_text(encoding="utf-8"))
            body_bytes(stored)
            dict(stored["headers"]), dict(stored["properties"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{self.path / 'message.json'} cannot be read ({type(error).__name__})."
            raise Refusal(msg) from error
        return dict(stored)


def kept_messages(root: JobsRoot) -> list[KeptMessage]:
    """All kept messages, the oldest first."""
    return sorted(_kept(root), key=lambda kept: (kept.kept_at, kept.message_id))


def _kept(root: JobsRoot) -> Iterator[KeptMessage]:
    for path in root.unhandled.iterdir() if root.unhandled.is_dir() else ():
        if path.name.startswith(".") or not (path / "message.json").is_file():
            continue
        try:
            stored = json.loads((path / "message.json").read_text(encoding="utf-8"))
        except ValueError:
            stored = {}
        reason = ""
        with contextlib.suppress(OSError):
            reason = (path / "reason.txt").read_text(encoding="utf-8").strip()
        yield KeptMessage(
            path,
            task=str(stored.get("task", "")),
            queue=str(stored.get("queue", "")),
            kept_at=iso((path / "message.json").stat().st_mtime),
            reason=reason,
        )


def select(kept: list[KeptMessage], ids: tuple[str, ...]) -> list[KeptMessage]:
    """The messages that are meant; raises Refusal when an id fits none (1) or several (2)."""
    chosen: dict[str, KeptMessage] = {}
    for text in ids:
        found = [message for message in kept if message.message_id == text] or [
            message for message in kept if text and message.message_id.startswith(text)
        ]
        if not found:
            msg = f"No message {text} is kept here (`girder-slurm unhandled` lists them)."
            raise Refusal(msg)
        if len(found) > 1:
            names = ", ".join(message.message_id for message in found)
            msg = f"{text} may be any of these: {names}."
            raise Unclear(msg)
        chosen[found[0].message_id] = found[0]
    return list(chosen.values())


def send_again(root: JobsRoot, kept: KeptMessage, broker: BrokerConnection, *, queue: str) -> str:
    """Publishes a message to its queue, then removes it here; returns the queue's name.

    Published first and removed second: a crash in between sends it twice, and the worker takes a task id only once.
    """
    stored = kept.content()
    name = queue or kept.queue
    if not name or broker.queue(name) is None:
        msg = f"Message {kept.message_id}: there is no queue {name or 'named in it'}; start the worker, or give --queue."
        raise Refusal(msg)
    if (root.records / kept.message_id).exists():
        msg = f"Message {kept.message_id}: its job is under way; look at it with `girder-slurm show {kept.message_id}`."
        raise Refusal(msg)
    # Its Girder job has ended with ERROR, which Girder lets nobody take back: without this the worker would stop there.
    stored["headers"] = {**stored["headers"], REQUEUED_HEADER: True}
    with _ended_record_aside(root, kept.message_id):
        broker.publish(name, body_bytes(stored), stored)
    gone = kept.path.with_name(f".{kept.path.name}.sent")
    kept.path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return name


@contextlib.contextmanager
def _ended_record_aside(root: JobsRoot, name: str) -> Iterator[None]:
    """A job that ended because it could not be decoded has a record: with it, the worker would not take it again."""
    record, aside = root.ended / name, root.ended / f".{name}.requeued"
    has_record = record.exists()
    if has_record:
        shutil.rmtree(aside, ignore_errors=True)
        record.rename(aside)
    try:
        yield
    except BaseException:
        if has_record:
            aside.rename(record)
        raise
    shutil.rmtree(aside, ignore_errors=True)
