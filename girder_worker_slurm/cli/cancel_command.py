"""`girder-slurm cancel JOB`: asks the worker to cancel a job, or Slurm itself."""

from __future__ import annotations

import getpass
import os
import pwd
import socket
from typing import TYPE_CHECKING

import click

from girder_worker_slurm.cli.answers import Refusal

if TYPE_CHECKING:
    from girder_worker_slurm.cluster.interface import Cluster
    from girder_worker_slurm.records.record import Record
    from girder_worker_slurm.settings import Settings


@click.command("cancel", short_help="Cancel a job.")
@click.argument("job")
@click.option(
    "--direct", is_flag=True, help="Also end its Slurm job right now, without waiting for the worker."
)
def cancel_command(*, job: str, direct: bool) -> None:
    """Cancel JOB: the worker ends its Slurm job, and Girder shows it as canceled.

    The wish is left in the job's record, where the worker finds it; without a running worker nothing happens until one
    starts (exit code 1), unless --direct is given. JOB is an id as for `girder-slurm show`.

    \b
    Examples:
      girder-slurm cancel 66f1c0ffee
      girder-slurm cancel --direct 48213
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415 - the help must come at once
    from girder_worker_slurm.cli.job_view import iso, state_word  # noqa: PLC0415
    from girder_worker_slurm.cli.site import find_job, site_jobs_root, site_settings  # noqa: PLC0415
    from girder_worker_slurm.doctor.workers import workers_of  # noqa: PLC0415
    from girder_worker_slurm.job.state import Phase  # noqa: PLC0415
    from girder_worker_slurm.records.cancel_request import request_cancel  # noqa: PLC0415

    settings = site_settings()
    root = site_jobs_root(settings)
    record = find_job(root, job)
    if record.state.phase >= Phase.DECIDED:
        msg = f"Job {record.task_id} cannot be cancelled any more (state: {state_word(record.state)})."
        raise Refusal(msg)
    clock = SystemClock()
    try:
        request_cancel(record.path, who=f"{getpass.getuser()}@{socket.gethostname()}", at=iso(clock.now()))
    except FileNotFoundError as error:
        msg = f"Job {record.task_id} has ended just now."
        raise Refusal(msg) from error
    if direct:
        # After the wish, so that the worker knows why the Slurm job ends.
        click.echo(cancel_in_slurm(record, _cluster(settings)))
    if any(worker.is_running for worker in workers_of(root.path, clock)):
        click.echo(f"Job {record.task_id}: the worker cancels it.")
        return
    if direct:
        click.echo("No worker is running: the next one to start tells Girder.")
        return
    msg = (
        f"No worker is running on {root.path}: job {record.task_id} is cancelled as soon as one starts; --direct ends"
        " its Slurm job now."
    )
    raise Refusal(msg)


def cancel_in_slurm(record: Record, cluster: Cluster) -> str:
    """Ends the job's Slurm job if it may have one, and says what was done."""
    state = record.state
    if not state.is_in_slurm:
        return f"Job {record.task_id} is not in Slurm."
    unix_user = state.unix_user or user_of_worker(record.path.stat().st_uid, os.geteuid())
    cluster.cancel([state.token], unix_user=unix_user)
    if state.slurm_job_id:
        return f"Slurm job {state.slurm_job_id} is cancelled."
    return f"The Slurm job named {state.token} is cancelled, if there is one."


def user_of_worker(owner_uid: int, own_uid: int) -> str:
    """As whom root has to ask Slurm to find the jobs of the worker that owns a record; empty where it is asked as who one is."""
    if own_uid != 0 or owner_uid == 0:
        return ""
    try:
        return pwd.getpwuid(owner_uid).pw_name
    except KeyError:
        return ""


def _cluster(settings: Settings) -> Cluster:
    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415
    from girder_worker_slurm.assembly import make_cluster, make_runner  # noqa: PLC0415 - brings the whole worker
    from girder_worker_slurm.cluster.slurm_module import slurm_environment  # noqa: PLC0415

    runner = make_runner()
    environment = slurm_environment(settings.slurm.slurm_module, runner, os.environ)
    return make_cluster(settings, runner, SystemClock(), environment)
