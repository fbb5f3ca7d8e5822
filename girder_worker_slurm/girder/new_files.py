"""What an analysis wrote besides its declared outputs, as one archive in Girder, for images that the site has chosen.

New is every file in the job's volume that no result hook has uploaded; an input counts if it was written to after the
job's script was made. The archive is made once, kept until Girder has it, and recorded as any other upload.
"""

from __future__ import annotations

import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_client import HttpError

from girder_worker_slurm.errors import OutputRefused
from girder_worker_slurm.girder.inputs import INPUTS, attach_clients
from girder_worker_slurm.girder.outputs import RecordLedger, make_safe
from girder_worker_slurm.girder.transfer_client import open_output
from girder_worker_slurm.options.requests import Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.records.record import Record

logger = logging.getLogger(__name__)

#: Directory of the archive beside the volume.
ARCHIVE = "archive"
_CHUNK_BYTES = 1024 * 1024
_GIB = 1024**3


@dataclass(frozen=True)
class ArchiveRules:
    """Whose new files are kept, and how much of them."""

    patterns: tuple[str, ...] = ()
    """Of images, or of images and, behind a blank, CLIs."""
    limit_bytes: int = 2 * _GIB

    def fit(self, image_names: Sequence[str], cli: str) -> bool:
        """Whether this CLI of an image that is spelt in any of these ways is meant."""
        return any(Profile(pattern, ()).fits(image_names, cli) for pattern in self.patterns)


def upload_new_files(
    decoded: DecodedTask,
    record: Record,
    *,
    place: Path,
    api_url: str,
    limit_bytes: int,
    check: Callable[[], None],
) -> str:
    """Brings them to where the outputs go; returns what became of it, in a sentence, or nothing if there is nothing to say.

    Never fails the job, whose outputs are in Girder already. Raises GirderUnreachable, and what `check` raises.
    """
    clients = attach_clients(decoded.hooks, api_url, check)
    target = next((hook for hook in decoded.hooks if _folder_or_item(hook) and hook.gc in clients), None)
    if target is None:
        return "The task has no output in Girder, so there is no place for its other new files."
    job = record.state.girder.job_id if record.state.girder is not None else record.path.name
    archive = place / ARCHIVE / f"new-files-{job}.zip"
    key = f"{ARCHIVE}:{archive.name}"
    if key in record.state.uploaded:
        return ""
    try:
        if not archive.exists():
            make_safe(place / "volume")
            found = list(new_files(place, _uploaded_outputs(record)))
            if not found:
                return ""
            total = sum(path.lstat().st_size for path in found)
            if total > limit_bytes:
                return (
                    f"{len(found)} new files besides the outputs have {total / _GIB:.1f} GiB, more than the"
                    f" {limit_bytes / _GIB:.1f} GiB that are kept here (`archive_limit_bytes`)."
                )
            _write_archive(archive, found, place / "volume", check)
        with zipfile.ZipFile(archive) as made:
            count = len(made.namelist())
        client = target.gc
        client.ledger, client.key_prefix, client.upload_root = RecordLedger(record), ARCHIVE, archive.parent
        if folder := getattr(target, "folder_id", None):
            client.uploadFileToFolder(str(folder), str(archive), filename=archive.name)
        else:
            client.uploadFileToItem(str(target.item_id), str(archive), filename=archive.name)
    except HttpError as error:  # is an OSError as well
        return f"Girder refused the archive of the new files ({error.status})."
    except (OSError, OutputRefused, zipfile.BadZipFile) as error:
        logger.warning("The new files of job %s could not be kept: %s", job, error)
        return f"The new files besides the outputs could not be kept: {error}."
    return f"{count} new file{'s' if count != 1 else ''} besides the outputs: {archive.name}."


def new_files(place: Path, known: frozenset[str]) -> Iterator[Path]:
    """Regular files in the volume that are new or were written to, but for those `known` (relative to the volume)."""
    volume = place / "volume"
    # Written when all inputs were there.
    begun = (place / "job.slurm").lstat().st_mtime_ns
    for directory, below, names in os.walk(volume):
        below.sort()
        for name in sorted(names):
            path = Path(directory) / name
            relative = path.relative_to(volume)
            if path.is_symlink() or not path.is_file() or str(relative) in known:
                continue
            if relative.parts[0] != INPUTS or path.lstat().st_mtime_ns > begun:
                yield path


def _folder_or_item(hook: Any) -> bool:
    return bool(getattr(hook, "folder_id", None) or getattr(hook, "item_id", None))


def _uploaded_outputs(record: Record) -> frozenset[str]:
    return frozenset(key.partition(":")[2] for key in record.state.uploaded)


def _write_archive(archive: Path, files: Sequence[Path], volume: Path, check: Callable[[], None]) -> None:
    archive.parent.mkdir(mode=0o700, exist_ok=True)
    draft = archive.with_name(f".{archive.name}")
    try:
        # strict_timestamps: a program may give its files any date.
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as made:
            for path in files:
                with open_output(path, volume) as source:
                    entry = zipfile.ZipInfo.from_file(
                        path, _printable(path.relative_to(volume)), strict_timestamps=False
                    )
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    with made.open(entry, "w", force_zip64=True) as target:
                        while chunk := source.read(_CHUNK_BYTES):
                            check()
                            target.write(chunk)
        draft.rename(archive)
    finally:
        draft.unlink(missing_ok=True)


def _printable(path: Path) -> str:
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
