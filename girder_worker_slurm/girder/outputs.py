"""Outputs of a task, brought to Girder by its result hooks, one by one, each recorded when it is done."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from girder_client import HttpError

from girder_worker_slurm.errors import OutputRefused, SlurmWorkerError
from girder_worker_slurm.girder.inputs import attach_clients, run_volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.records.record import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordLedger:
    """Uploads as the job's record knows them."""

    record: Record

    def is_uploaded(self, key: str) -> bool:
        """See `UploadLedger`."""
        return key in self.record.state.uploaded

    def upload_id(self, key: str) -> str | None:
        """See `UploadLedger`."""
        return self.record.state.uploads.get(key)

    def begun(self, key: str, upload_id: str) -> None:
        """See `UploadLedger`."""
        self.record.append("upload", key=key, upload_id=upload_id)

    def finished(self, key: str) -> None:
        """See `UploadLedger`."""
        self.record.append("uploaded", key=key)


def deliver(
    record: Record, decoded: DecodedTask, *, run: Path, name: str, api_url: str, check: Callable[[], None]
) -> list[Any]:
    """Runs all result hooks that have not run; returns what each of them gives.

    Raises OutputRefused (Girder will not take it, or the analysis did not write it), GirderUnreachable, and what
    `check` raises.
    """
    remove_escaping_links(run / "volume")
    volume = run_volume(run, name)
    clients = attach_clients(decoded.hooks, api_url, check)
    for client in clients:
        client.ledger = RecordLedger(record)
        client.upload_root = run
    results: list[Any] = []
    for index, hook in enumerate(decoded.hooks):
        if index in record.state.hooks_done:
            results.append(getattr(hook, "folder_id", None) or getattr(hook, "item_id", None))
            continue
        check()
        for client in clients:
            client.key_prefix = str(index)
        results.append(_run_hook(hook, volume, run))
        record.append("hook_done", index=index)
    return results


def after_failure(
    decoded: DecodedTask, record: Record, *, run: Path, name: str, api_url: str, check: Callable[[], None]
) -> list[str]:
    """Runs what hooks have for the case of failure (artifacts for debugging); returns what went wrong."""
    remove_escaping_links(run / "volume")
    volume = run_volume(run, name)
    problems = []
    for client in attach_clients(decoded.hooks, api_url, check):
        client.ledger = RecordLedger(record)
        client.upload_root = run
        client.key_prefix = "failure"
    for hook in decoded.hooks:
        try:
            # An artifact's own exception() would look for the file at its path in the container.
            if getattr(hook, "_upload_on_exception", False):
                _refuse_escaping_name(hook)
                hook.transform(None, _default_temp_volume=volume)
            elif callable(getattr(hook, "exception", None)) and not hasattr(hook, "_upload_on_exception"):
                hook.exception()
        except SlurmWorkerError:
            raise
        except Exception as error:  # noqa: BLE001 - a hook is foreign code; the job has failed already
            problems.append(f"{type(hook).__name__}: {error}")
    return problems


def remove_escaping_links(volume: Path) -> list[Path]:
    """Removes symbolic links that lead out of the volume, and returns them.

    A container can write any link; followed here, outside the container, it would upload files of the worker's user.
    """
    removed = []
    inside = volume.resolve()
    for directory, folders, files in os.walk(volume):
        for name in (*folders, *files):
            path = Path(directory, name)
            if path.is_symlink() and not _leads_into(path, inside):
                path.unlink()
                removed.append(path)
                logger.warning("The output link %s led out of its directory and is left out", path)
    return removed


def _leads_into(link: Path, directory: Path) -> bool:
    try:
        return link.resolve().is_relative_to(directory)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _run_hook(hook: Any, volume: Any, run: Path) -> Any:
    if not callable(getattr(hook, "transform", None)):
        return None
    _refuse_escaping_name(hook)
    try:
        return hook.transform(None, _default_temp_volume=volume)
    except SlurmWorkerError:
        raise
    except FileNotFoundError as error:
        msg = f"The analysis ended without error but did not write its output {error.filename or ''}."
        raise OutputRefused(msg) from error
    except HttpError as error:
        msg = f"Girder refused an output ({error.status}). The outputs are kept in {run / 'volume'}."
        raise OutputRefused(msg) from error
    except OSError:
        raise
    except Exception as error:
        # A hook is foreign code: what it raises it would raise again.
        msg = f"{type(hook).__name__} failed: {type(error).__name__}: {error}. The outputs are kept in {run / 'volume'}."
        raise OutputRefused(msg) from error


def _refuse_escaping_name(hook: Any) -> None:
    """Raises OutputRefused for a name that leads out of the volume: it is what a user typed."""
    name = getattr(getattr(hook, "_volumepath", None), "filename", None)
    if isinstance(name, str) and (".." in PurePath(name).parts or PurePath(name).is_absolute()):
        msg = f"The output name {name!r} leads out of the job's directory."
        raise OutputRefused(msg)
