"""`girder-slurm explain JOB`: what a job asked of Slurm, and who said so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from girder_worker_slurm.cli.answers import Refusal, print_json

if TYPE_CHECKING:
    from girder_worker_slurm.records.record import Record


@click.command("explain", short_help="Show where a job's sbatch options come from.")
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of text.")
def explain_command(*, job: str, as_json: bool) -> None:
    """Show each sbatch option of JOB, where it comes from, and what it took the place of.

    Options come from [slurm.options], Girder's settings, [slurm.profiles], the mapping of users, Docker's limits, the image's labels,
    the CLI's docker-params and its own arguments --slurm_NAME; the later ones of these win. JOB is written as for `girder-slurm show`.

    \b
    Examples:
      girder-slurm explain 66f1c0ffee
      girder-slurm explain 48213 --json
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.terminal import visible  # noqa: PLC0415
    from girder_worker_slurm.cli.job_view import user_words  # noqa: PLC0415
    from girder_worker_slurm.cli.site import find_job, site_jobs_root  # noqa: PLC0415 - the help must come at once

    record = find_job(site_jobs_root(), job)
    options = _options(record)
    if as_json:
        print_json(options)
        return
    if record.state.user is not None:
        click.echo(visible(f"Girder user: {user_words(record.state.user.as_entry())}"))
    for option in options:
        click.echo(visible(f"{_written(option['name'], option['value']):<32}{option['origin']}"))
        for name, value, origin in option["instead_of"]:
            click.echo(visible(f"{'':<6}instead of {_written(name, value)}, {origin}"))
    if not options:
        click.echo("None: the cluster's own defaults count.")


def _options(record: Record) -> list[dict[str, Any]]:
    from girder_worker_slurm.job.job_request import OPTIONS_FILE  # noqa: PLC0415 - slow to import

    try:
        found = json.loads((record.path / OPTIONS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"The options of job {record.task_id} have not been decided yet, or are not kept any more."
        raise Refusal(msg) from error
    return found if isinstance(found, list) else []


def _written(name: str, value: str) -> str:
    return f"--{name}={value}" if value else f"--{name}"
