"""`girder-slurm jobs`: which jobs there are and where they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from girder_worker_slurm.cli.answers import print_json

if TYPE_CHECKING:
    from girder_worker_slurm.cli.job_view import JobView


@click.command("jobs", short_help="List jobs.")
@click.option("--all", "with_ended", is_flag=True, help="Also the jobs that have ended and are still kept.")
@click.option(
    "--state", "states", multiple=True, metavar="WORD", help="Only jobs in this state; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of a table.")
def jobs_command(*, with_ended: bool, states: tuple[str, ...], as_json: bool) -> None:
    """List the jobs of this jobs root, those of all its workers.

    The states, in the order of a job's life: accepted, ingesting, staging, preparing (its image and script), waiting
    (for a free place in Slurm), submitting, pending, running, ending, cancelling, uploading, reporting, cleaning; and
    with --all: succeeded, failed, canceled, abandoned (the Girder job was deleted).

    \b
    Examples:
      girder-slurm jobs
      girder-slurm jobs --state pending --state running
      girder-slurm jobs --state failed
      girder-slurm jobs --all --json
    """  # noqa: D301 - click wants the character
    from girder_worker_slurm.cli.job_view import STATE_WORDS, view  # noqa: PLC0415 - the help must come at once
    from girder_worker_slurm.cli.site import site_jobs_root  # noqa: PLC0415

    unknown = [word for word in states if word not in STATE_WORDS]
    if unknown:
        msg = f"There is no state `{unknown[0]}`; there are: {', '.join(STATE_WORDS)}."
        raise click.UsageError(msg)
    root = site_jobs_root()
    lines = []
    for record in root.all_records():
        # Ended jobs come last; there may be many, and reading them takes its time.
        if record.path.parent == root.ended and not (with_ended or states):
            break
        line = view(record)
        if not states or line.state in states:
            lines.append(line)
    lines.sort(key=lambda line: line.accepted_at)
    if as_json:
        print_json([line.as_json() for line in lines])
    elif lines:
        _print_table(lines)
    else:
        click.echo("No jobs.")


def _print_table(lines: list[JobView]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415
    from girder_worker_singularity.terminal import visible  # noqa: PLC0415
    from girder_worker_slurm.cli.job_view import ago  # noqa: PLC0415

    now = SystemClock().now()
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Ids are copied into other commands: never cut, while title and image may be.
    for name, fixed in (
        ("girder job", True),
        ("title", False),
        ("state", True),
        ("slurm", True),
        ("image", False),
        ("since", True),
    ):
        table.add_column(
            name, no_wrap=True, overflow="fold" if fixed else "ellipsis", min_width=4 if fixed else 8
        )
    for line in lines:
        state = f"{line.state} (cancel requested)" if line.cancel_requested else line.state
        cells = (
            line.girder_job_id or line.task_id,
            line.title,
            state,
            line.slurm_job_id,
            line.image,
            ago(line.since, now),
        )
        # Text, not markup: titles come from users.
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        # For grep and less: no line is cut at 80 columns.
        console = Console(width=400)
    console.print(table)
