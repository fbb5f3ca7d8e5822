"""`girder-slurm show JOB`: everything about one job."""

from __future__ import annotations

from typing import Any

import click

from girder_worker_slurm.cli.answers import print_json


@click.command("show", short_help="Show everything about a job.")
@click.argument("job")
@click.option("--lines", default=10, show_default=True, help="How many last lines of the log.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object instead of text.")
def show_command(*, job: str, lines: int, as_json: bool) -> None:
    """Show everything that is known about JOB: ids, times, directories, how it ended, the end of its log.

    JOB is the id of the Girder job, of the Slurm job or of the task, the name of the Slurm job, or the beginning of one
    of them (not of the Slurm job's id). What a running job has used so far is asked of Slurm (sstat), where it measures that. No token or password is ever shown.

    \b
    Examples:
      girder-slurm show 66f1c0ffee
      girder-slurm show 48213 --json
    """  # noqa: D301 - click wants the character
    from girder_worker_slurm.cli.job_view import details  # noqa: PLC0415 - the help must come at once
    from girder_worker_slurm.cli.running_job import usage_so_far  # noqa: PLC0415
    from girder_worker_slurm.cli.site import find_job, site_jobs_root, site_settings  # noqa: PLC0415

    settings = site_settings()
    root = site_jobs_root(settings)
    record = find_job(root, job)
    so_far = usage_so_far(settings, record.state)
    found = details(record, root.path, log_lines=lines, so_far=so_far)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from girder_worker_singularity.terminal import visible  # noqa: PLC0415
    from girder_worker_slurm.cli.job_view import user_words  # noqa: PLC0415

    requested = " (cancel requested)" if found["cancel_requested"] else ""
    started, ended = found["started"] or {}, found["ended"] or {}
    rows = [
        ("Girder job", found["girder_job_id"]),
        ("title", found["title"]),
        ("user", user_words(found["user"])),
        ("Unix user", found["unix_user"]),
        ("state", f"{found['state']}{requested}: {found['meaning']}"),
        ("Slurm job", found["slurm_job_id"]),
        ("Slurm job name", found["slurm_job_name"]),
        ("node", started.get("node", "") or ended.get("node", "")),
        ("image", found["image"]),
        ("task", found["task"]),
        ("task id", found["task_id"]),
        ("Girder address", found["girder_url"]),
        ("worker", found["worker"]),
        ("accepted", found["accepted_at"]),
        ("submitted", found["submitted_at"]),
        ("started", started.get("at", "")),
        ("ended", ended.get("at", "")),
        ("exit code", ended.get("exit_code", "")),
        ("usage so far", (found["usage_so_far"] or {}).get("sentence", "")),
        ("usage", (found["usage"] or {}).get("sentence", "")),
        ("accounting", (found["accounted"] or {}).get("sentence", "")),
        (
            "earlier tries",
            ", ".join(
                f"{tried['slurm_job_id']} ({' on '.join(filter(None, (tried['code'], tried['nodes'])))})"
                for tried in found["earlier_attempts"]
            ),
        ),
        ("last change", found["since"]),
        ("cancel", found["cancel"]),
        ("verdict", found["verdict"]["sentence"] if found["verdict"] else ""),
        ("owed to Girder", found["owed"]),
        ("record", found["record"]),
        ("run directory", found["run_directory"]),
        ("log", found["log"]),
    ]
    for name, value in rows:
        if value not in ("", None):
            click.echo(f"{name + ':':<16}{visible(str(value))}")
    if found["log_tail"]:
        click.echo("last lines of the log:")
        for line in found["log_tail"]:
            click.echo("  " + visible(line, keep="\t"))
