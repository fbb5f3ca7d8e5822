"""`girder-slurm settings`: all settings with their defaults, as a file or as a page."""

from __future__ import annotations

import click


@click.command("settings", short_help="Print all settings.")
@click.option("--reference", is_flag=True, help="As the Markdown page of the documentation.")
def settings_command(*, reference: bool) -> None:
    """Print every setting with its default: the text of worker.dist.cfg."""
    from girder_worker_slurm.settings import render_reference, render_sample  # noqa: PLC0415 - slow to import

    click.echo(render_reference() if reference else render_sample(), nl=False)
