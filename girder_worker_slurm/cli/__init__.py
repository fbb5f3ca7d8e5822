"""`girder-slurm`: start the worker, check the site, look at jobs. Parses, calls, prints; decides nothing."""

from __future__ import annotations

import sys

import click

from girder_worker_slurm.cli.settings_command import settings_command
from girder_worker_slurm.cli.worker_command import worker_command
from girder_worker_slurm.errors import SlurmWorkerError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="girder-worker-slurm")
def cli() -> None:
    """Run the container tasks of Girder and the Digital Slide Archive on a Slurm cluster.

    Settings come from the files named in GIRDER_WORKER_SLURM_CONFIG (worker/run.sh sets it to worker.dist.cfg and
    worker.local.cfg) and from the environment.
    """


cli.add_command(worker_command)
cli.add_command(settings_command)


def main() -> None:
    """The program: errors of ours are one line on stderr and exit code 1."""
    try:
        cli()
    except SlurmWorkerError as error:
        click.echo(f"girder-slurm: {error}", err=True)
        sys.exit(1)
