"""`girder-slurm`: start the worker, check the site, look at jobs. Parses, calls, prints; decides nothing.

The modules here import nothing of weight at their top: a command line that people type has to answer at once.
"""

from __future__ import annotations

import logging

import click

from girder_worker_slurm.cli.answers import SlurmErrors
from girder_worker_slurm.cli.cancel_command import cancel_command
from girder_worker_slurm.cli.doctor_command import doctor_command
from girder_worker_slurm.cli.explain_command import explain_command
from girder_worker_slurm.cli.jobs_command import jobs_command
from girder_worker_slurm.cli.log_command import log_command
from girder_worker_slurm.cli.retry_upload_command import retry_upload_command
from girder_worker_slurm.cli.service_command import service_command
from girder_worker_slurm.cli.settings_command import settings_command
from girder_worker_slurm.cli.show_command import show_command
from girder_worker_slurm.cli.unhandled_commands import requeue_command, unhandled_command
from girder_worker_slurm.cli.worker_command import worker_command


@click.group("girder-slurm", cls=SlurmErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="girder-worker-slurm")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def cli(*, debug: bool) -> None:
    """Run the container tasks of Girder and the Digital Slide Archive on a Slurm cluster.

    Settings come from the files named in GIRDER_WORKER_SLURM_CONFIG (worker/run.sh sets it to worker.dist.cfg and
    worker.local.cfg) and from the environment. Run these commands as the user of the worker.

    Exit codes: 0 all is well, 1 the answer is no, 2 the command was not understood.
    """
    if debug:
        # Of ours only: the libraries would drown it. OneLineErrors reads the option as well.
        logging.basicConfig()
        logging.getLogger("girder_worker_slurm").setLevel(logging.DEBUG)


for command in (
    worker_command,
    doctor_command,
    jobs_command,
    show_command,
    explain_command,
    log_command,
    cancel_command,
    retry_upload_command,
    unhandled_command,
    requeue_command,
    settings_command,
    service_command,
):
    cli.add_command(command)


def main() -> None:
    """The program."""
    cli()
