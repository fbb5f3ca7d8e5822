"""`girder-singularity`: make, look at, run and remove SIFs. Parses, calls, prints; decides nothing."""

from __future__ import annotations

import logging

import click

from girder_worker_singularity.cli.adopt_command import adopt_command
from girder_worker_singularity.cli.answers import OneLineErrors
from girder_worker_singularity.cli.inspect_command import inspect_command
from girder_worker_singularity.cli.list_command import list_command
from girder_worker_singularity.cli.prune_command import prune_command
from girder_worker_singularity.cli.pull_command import pull_command
from girder_worker_singularity.cli.run_command import run_command
from girder_worker_singularity.cli.verify_command import verify_command


@click.group(
    "girder-singularity", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="girder-worker-slurm")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def cli(*, debug: bool) -> None:
    """Run Docker images with Apptainer: each is converted once into a SIF file, and starts as under Docker.

    The SIFs are in the directory that SIF_IMAGE_PATH or `sif_image_path` in [singularity] names, the one of the
    worker. Settings come from the files named in GIRDER_WORKER_SLURM_CONFIG and from the environment. Run these
    commands as the user of the worker, on its machine. IMAGE is written as for Docker: name:tag, user/name:tag,
    host:port/path/name:tag or name@sha256:digest.

    Exit codes: 0 all is well, 1 the answer is no, 2 the command was not understood. `run` ends with the exit code of
    the container.
    """
    if debug:
        # OneLineErrors reads the option as well.
        logging.basicConfig()
        logging.getLogger("girder_worker_singularity").setLevel(logging.DEBUG)


for command in (
    pull_command,
    list_command,
    inspect_command,
    run_command,
    verify_command,
    adopt_command,
    prune_command,
):
    cli.add_command(command)


def main() -> None:
    """The program."""
    cli()
