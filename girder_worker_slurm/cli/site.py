"""What every command begins with: the settings, the jobs root, the job that is meant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from girder_worker_slurm.cli.answers import Refusal, Unclear
from girder_worker_slurm.cli.job_view import view
from girder_worker_slurm.errors import RecordDamaged

if TYPE_CHECKING:
    from girder_worker_slurm.records.jobs_root import JobsRoot
    from girder_worker_slurm.records.record import Record
    from girder_worker_slurm.settings import Settings

#: More matches than this are not listed.
_LISTED = 20


def site_settings() -> Settings:
    """The settings of this environment; raises SettingsInvalid."""
    from girder_worker_slurm.settings import load_settings, settings_files  # noqa: PLC0415 - slow to import

    return load_settings(settings_files(os.environ), os.environ)


def site_jobs_root(settings: Settings | None = None) -> JobsRoot:
    """The jobs root, for looking at; raises Refusal if no worker has made it yet."""
    from girder_worker_slurm.records.jobs_root import JobsRoot  # noqa: PLC0415 - slow to import

    path = (settings or site_settings()).jobs_root
    if not (path / "record").is_dir():
        msg = f"There are no jobs in {path}: no worker has run with this jobs root yet."
        raise Refusal(msg)
    if not os.access(path / "record", os.R_OK | os.X_OK):
        msg = f"{path / 'record'} is closed to this user; run this as the user of the worker."
        raise Refusal(msg)
    # The name is of no account: nothing is owned by who only looks.
    return JobsRoot(path, "girder-slurm")


def find_job(root: JobsRoot, text: str) -> Record:
    """The one job that is meant; raises Refusal when there is none (1) or more than one (2)."""
    if not text:
        msg = "Which job? Give an id."
        raise Unclear(msg)
    found = root.find(text)
    exact = [record for record in found if text in _names(record)]
    found = exact or found
    if not found:
        msg = f"No job here is called {text}, or begins with it (`girder-slurm jobs --all` lists them)."
        raise Refusal(msg)
    if len(found) > 1:
        lines = [f"{text} may be any of these; write the task id:"]
        lines += [
            f"  {record.task_id}  {line.girder_job_id or '-'}  {line.slurm_job_id or '-'}  {line.state}  {line.title}"
            for record, line in ((record, view(record)) for record in found[:_LISTED])
        ]
        lines += [f"  ... and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        raise Unclear("\n".join(lines))
    return found[0]


def reload(root: JobsRoot, record: Record) -> Record | None:
    """The record as it is now, wherever it has moved; None if it was removed."""
    from girder_worker_slurm.records.record import Record  # noqa: PLC0415

    for directory in (root.records, root.ended, root.records, root.ended):
        try:
            return Record.load(directory / record.path.name, worker_id=root.worker_id, repair=False)
        except RecordDamaged:
            continue
    return None


def _names(record: Record) -> tuple[str, ...]:
    state = record.state
    earlier = [name for attempt in state.earlier for name in (attempt.token, attempt.slurm_job_id)]
    girder_job = state.girder.job_id if state.girder else ""
    return (record.task_id, girder_job, state.token, state.slurm_job_id, *earlier)
