"""`girder-slurm retry-upload JOB`: brings to Girder what it refused, with another token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from girder_worker_slurm.cli.answers import Refusal

if TYPE_CHECKING:
    from girder_worker_slurm.cluster.run_files import RunFiles
    from girder_worker_slurm.records.record import Record
    from girder_worker_slurm.settings import Settings

#: Where an API key may stand, as for girder-client.
API_KEY_VARIABLE = "GIRDER_API_KEY"


@click.command("retry-upload", short_help="Bring outputs to Girder that it refused.")
@click.argument("job")
@click.option(
    "--token-file", type=click.Path(exists=True, dir_okay=False), help="A file with a Girder token."
)
@click.option(
    "--api-key-file", type=click.Path(exists=True, dir_okay=False), help="A file with a Girder API key."
)
def retry_upload_command(*, job: str, token_file: str | None, api_key_file: str | None) -> None:
    """Bring the outputs of JOB to Girder, and tell it how the job ended, after it refused them.

    The tokens of a Girder job live seven days. What ends later, or meets a quota or a folder that its user may not
    write to, is kept in the job's run directory until the record is removed. Once the reason is mended, this command
    uploads what is missing, sends the rest of the log, and marks the job as done.

    It needs a token, or an API key, of a user who may write to the job and to where its outputs go: its owner, or an
    administrator. It is read from a file, or from the environment (GIRDER_API_KEY), or asked for. It may be broken off
    and repeated: nothing is uploaded twice. JOB is an id as for `girder-slurm show`.

    \b
    Examples:
      girder-slurm retry-upload 66f1c0ffee
      girder-slurm retry-upload 66f1c0ffee --token-file ~/girder-token
      girder-slurm retry-upload 66f1c0ffee --api-key-file ~/girder-key
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.holder import Holder  # noqa: PLC0415
    from girder_worker_singularity.lease import Lease, LeaseHeld  # noqa: PLC0415
    from girder_worker_slurm.cli.site import find_job, reload, site_jobs_root, site_settings  # noqa: PLC0415

    settings = site_settings()
    root = site_jobs_root(settings)
    record = find_job(root, job)
    token = _token(record, settings, token_file, api_key_file)
    try:
        lease = Lease.acquire(
            record.path / "retry-upload", Holder.this_process("retry-upload"), SystemClock(), wait_seconds=0
        )
    except LeaseHeld as error:
        msg = f"Job {record.task_id} is being uploaded already: {error.holder}."
        raise Refusal(msg) from error
    with lease, lease.kept_alive():
        # As it is now that nobody else is at it.
        click.echo(_bring(settings, reload(root, record) or record, token))


def _bring(settings: Settings, record: Record, token: str) -> str:
    from girder_worker_slurm.celery_worker.admitted_objects import admitted_classes  # noqa: PLC0415
    from girder_worker_slurm.cluster.user_run_files import UserUnreachable  # noqa: PLC0415
    from girder_worker_slurm.girder.job_updates import (  # noqa: PLC0415
        AccessRefused,
        JobStatus,
        JobUpdates,
    )
    from girder_worker_slurm.job.late_delivery import LateDelivery  # noqa: PLC0415

    runs = _runs_of(record, settings)
    late = LateDelivery(
        runs,
        record,
        token=token,
        admitted_classes=admitted_classes(settings.celery.allow_classes),
        updates=JobUpdates(),
        api_url=settings.girder.api_url,
        log_limit_bytes=settings.girder.log_limit_bytes,
    )
    try:
        done = late.bring()
    except AccessRefused as error:
        msg = f"{error} Use one of the job's owner or of an administrator."
        raise Refusal(msg) from error
    except UserUnreachable as error:
        raise Refusal(str(error)) from error
    runs.remove_data(record.state.token)
    shown = JobStatus(done.status).name if done.status in set(JobStatus) else str(done.status)
    return f"Job {record.task_id}: {done.outputs} output files are in Girder, which shows the job as {shown}."


def _runs_of(record: Record, settings: Settings) -> RunFiles:
    """The run files of the Unix user whom the job ran as."""
    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415
    from girder_worker_slurm.cli.site import site_jobs_root  # noqa: PLC0415
    from girder_worker_slurm.cluster.run_directory import RunDirectories  # noqa: PLC0415

    root = site_jobs_root(settings).path
    if not record.state.unix_user:
        return RunDirectories(root)
    from girder_worker_slurm.assembly import make_runs_as  # noqa: PLC0415 - brings the whole worker

    try:
        return make_runs_as(settings, SystemClock(), os.environ, root)(record.state.unix_user)
    except OSError as error:
        raise Refusal(str(error)) from error


def _token(record: Record, settings: Settings, token_file: str | None, api_key_file: str | None) -> str:
    """What the user gave, as a token; an API key is changed into one by Girder."""
    if token_file and api_key_file:
        msg = "Give a token or an API key, not both."
        raise click.UsageError(msg)
    if token_file:
        return _first_line(token_file)
    key = _first_line(api_key_file) if api_key_file else os.environ.get(API_KEY_VARIABLE, "")
    if not key:
        return str(click.prompt("Girder token", hide_input=True, err=True)).strip()
    from girder_worker_slurm.girder.job_updates import token_of_api_key  # noqa: PLC0415

    api_url = settings.girder.api_url or (record.state.girder.api_url if record.state.girder else "")
    return token_of_api_key(api_url, key)


def _first_line(path: str) -> str:
    lines = Path(path).read_text(encoding="utf-8").split()
    if not lines:
        msg = f"{path} is empty."
        raise Refusal(msg)
    return lines[0]
