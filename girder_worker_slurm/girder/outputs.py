"""Outputs of a task, brought to Girder by its result hooks, one by one, each recorded when it is done."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from girder_client import HttpError

from girder_worker_slurm.errors import OutputRefused, SlurmWorkerError
from girder_worker_slurm.girder.inputs import attach_clients, run_volume
from girder_worker_slurm.girder.transfer_client import CHUNK_BYTES, Upload, open_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.records.record import Record

logger = logging.getLogger(__name__)

#: What trying again does not mend; a full disk or a stale mount may pass.
REFUSED_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EILSEQ,
        errno.ENXIO,
    }
)


@dataclass(frozen=True)
class RecordLedger:
    """Uploads as the job's record knows them."""

    record: Record
    #: Told of each new entry.
    progressed: Callable[[], None] = field(default=lambda: None)

    def is_uploaded(self, key: str) -> bool:
        """See `UploadLedger`."""
        return key in self.record.state.uploaded

    def upload(self, key: str) -> Upload | None:
        """See `UploadLedger`."""
        state = self.record.state
        upload_id = state.uploads.get(key)
        return None if upload_id is None else Upload(upload_id, state.upload_offsets.get(key, 0))

    def begun(self, key: str, upload_id: str) -> None:
        """See `UploadLedger`."""
        # After a power cut nothing else tells that the file may be in Girder already.
        self.record.append("upload", durable=True, key=key, upload_id=upload_id)
        self.progressed()

    def acknowledged(self, key: str, offset: int) -> None:
        """See `UploadLedger`."""
        # An upload that Girder does not know any more was finished if all but one chunk are known to be there.
        self.record.append("upload_at", durable=offset >= CHUNK_BYTES, key=key, offset=offset)
        self.progressed()

    def finished(self, key: str) -> None:
        """See `UploadLedger`."""
        self.record.append("uploaded", key=key)
        self.progressed()


@dataclass(frozen=True)
class OutputPlace:
    """Where the outputs of a job are."""

    #: The directory whose `volume` the worker reads.
    place: Path
    #: Where they stay if Girder does not take them.
    kept: Path

    @property
    def volume(self) -> Path:
        """What was the container's volume."""
        return self.place / "volume"


def deliver(
    record: Record,
    decoded: DecodedTask,
    *,
    at: OutputPlace,
    name: str,
    api_url: str,
    check: Callable[[], None],
    progressed: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Runs all result hooks that have not run; returns what each of them gives.

    `check` is called between two requests and may raise to stop, `progressed` after each step that is recorded. Raises
    OutputRefused (Girder will not take it, or the analysis did not write it), GirderUnreachable, and what `check` raises.
    """
    make_safe(at.volume)
    volume = run_volume(at.place, name)
    clients = attach_clients(decoded.hooks, api_url, check)
    for client in clients:
        client.ledger = RecordLedger(record, progressed)
        client.upload_root = at.volume
    results: list[Any] = []
    for index, hook in enumerate(decoded.hooks):
        if index in record.state.hooks_done:
            results.append(_known_result(hook))
            continue
        check()
        for client in clients:
            client.key_prefix = str(index)
        results.append(_run_hook(hook, volume, at))
        record.append("hook_done", index=index)
    return results


def known_results(decoded: DecodedTask) -> list[Any]:
    """What the hooks of a task have given, of which nothing else is known than that they have run."""
    return [_known_result(hook) for hook in decoded.hooks]


def _known_result(hook: Any) -> Any:
    return getattr(hook, "folder_id", None) or getattr(hook, "item_id", None)


def hooks_for_failure(decoded: DecodedTask) -> list[Any]:
    """Those of a task's hooks that do something when it has failed."""
    return [
        hook
        for hook in decoded.hooks
        if getattr(hook, "_upload_on_exception", False)
        or (callable(getattr(hook, "exception", None)) and not hasattr(hook, "_upload_on_exception"))
    ]


def after_failure(
    decoded: DecodedTask,
    record: Record,
    *,
    at: OutputPlace,
    name: str,
    api_url: str,
    check: Callable[[], None],
) -> list[str]:
    """Runs what hooks have for the case of failure (artifacts for debugging); returns what went wrong."""
    make_safe(at.volume)
    volume = run_volume(at.place, name)
    problems = []
    for client in attach_clients(decoded.hooks, api_url, check):
        client.ledger = RecordLedger(record)
        client.upload_root = at.volume
        client.key_prefix = "failure"
    for hook in hooks_for_failure(decoded):
        try:
            # An artifact's own exception() would look for the file at its path in the container.
            if getattr(hook, "_upload_on_exception", False):
                _refuse_escaping_name(hook)
                _guard_artifacts(hook, at.volume)
                hook.transform(None, _default_temp_volume=volume)
            else:
                hook.exception()
        except SlurmWorkerError:
            raise
        except Exception as error:  # noqa: BLE001 - a hook is foreign code; the job has failed already
            problems.append(f"{type(hook).__name__}: {error}")
    return problems


def make_safe(volume: Path) -> list[Path]:
    """Makes a volume readable and removes symbolic links that lead out of it; returns those.

    A container can leave directories without permissions, and any link: followed here, outside the container, it
    would give away files of the worker's user. Raises OutputRefused for what cannot be looked into, OSError where that
    may pass.
    """
    removed: list[Path] = []
    inside = volume.resolve()
    pending = [volume]
    while pending:
        directory = pending.pop()
        try:
            mode = stat.S_IMODE(directory.lstat().st_mode)
            if (
                mode & stat.S_IRWXU != stat.S_IRWXU
            ):  # one of another owner, such as a fakeroot leaves, may be readable
                directory.chmod(mode | stat.S_IRWXU)
            entries = list(os.scandir(directory))
        except OSError as error:
            if error.errno not in REFUSED_ERRORS | {errno.ENOENT}:
                raise
            msg = f"The output directory {directory.name} cannot be read: {error.strerror}."
            raise OutputRefused(msg) from error
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                if not _leads_into(path, inside):
                    path.unlink()
                    removed.append(path)
                    logger.warning("The output link %s led out of its directory and is left out", path)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif not os.access(path, os.R_OK):
                with contextlib.suppress(OSError):  # opening it tells
                    path.chmod(stat.S_IMODE(path.lstat().st_mode) | stat.S_IRUSR)
    return removed


def _leads_into(link: Path, directory: Path) -> bool:
    try:
        return link.resolve().is_relative_to(directory)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _run_hook(hook: Any, volume: Any, at: OutputPlace) -> Any:
    if not callable(getattr(hook, "transform", None)):
        return None
    _refuse_escaping_name(hook)
    _guard_artifacts(hook, at.volume)
    try:
        return hook.transform(None, _default_temp_volume=volume)
    except SlurmWorkerError:
        raise
    except FileNotFoundError as error:
        msg = f"The analysis ended without error but did not write its output {error.filename or ''}."
        raise OutputRefused(msg) from error
    except HttpError as error:
        msg = f"Girder refused an output ({error.status}). The outputs are kept in {at.kept}."
        raise OutputRefused(msg) from error
    except OSError as error:
        if error.errno not in REFUSED_ERRORS:
            raise
        msg = f"The output {error.filename or ''} cannot be read: {error.strerror}. It is kept in {at.kept}."
        raise OutputRefused(msg) from error
    except Exception as error:
        # A hook is foreign code: what it raises it would raise again.
        msg = f"{type(hook).__name__} failed: {type(error).__name__}: {error}. The outputs are kept in {at.kept}."
        raise OutputRefused(msg) from error


def _guard_artifacts(hook: Any, volume: Path) -> None:
    """Has an artifact's files opened with the same care as other outputs: its hook opens them itself."""
    upload = getattr(hook, "_upload_artifact", None)
    if upload is None:
        return

    def guarded(file: str, name: str | None = None) -> Any:
        with open_output(Path(file), volume):
            return upload(file, name)

    hook._upload_artifact = guarded  # noqa: SLF001 - the stock name


def _refuse_escaping_name(hook: Any) -> None:
    """Raises OutputRefused for a name that leads out of the volume: it is what a user typed."""
    name = getattr(getattr(hook, "_volumepath", None), "filename", None)
    if isinstance(name, str) and (".." in PurePath(name).parts or PurePath(name).is_absolute()):
        msg = f"The output name {name!r} leads out of the job's directory."
        raise OutputRefused(msg)
