"""`girder-slurm unhandled` and `girder-slurm requeue`: messages that could not be run here."""

from __future__ import annotations

import click

from girder_worker_slurm.cli.answers import Refusal, print_json

_BROKER_SECONDS = 10.0


@click.command("unhandled", short_help="List messages that could not be run.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of text.")
def unhandled_command(*, as_json: bool) -> None:
    """List the messages that the worker could not run, each with the reason.

    They were taken from the queue and kept: their task is not installed here, or they cannot be decoded.

    \b
    Examples:
      girder-slurm unhandled
      girder-slurm unhandled --json
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.terminal import visible  # noqa: PLC0415
    from girder_worker_slurm.cli.kept_messages import kept_messages  # noqa: PLC0415 - the help must come at once
    from girder_worker_slurm.cli.site import site_jobs_root  # noqa: PLC0415

    kept = kept_messages(site_jobs_root())
    if as_json:
        print_json([message.as_json() for message in kept])
        return
    for message in kept:
        click.echo(visible(f"{message.message_id}  {message.task or '(no task)'}  since {message.kept_at}"))
        click.echo(visible(f"    {' '.join(message.reason.split())}"))
    if not kept:
        click.echo("No messages are kept.")


@click.command("requeue", short_help="Send such messages back to their queue.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "all_of_them", is_flag=True, help="All kept messages.")
@click.option("--queue", default="", help="Another queue than the one each message came from.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of what was sent.")
def requeue_command(*, ids: tuple[str, ...], all_of_them: bool, queue: str, as_json: bool) -> None:
    """Send kept messages back to their queue, as they came, and remove them here.

    First mend the reason that `girder-slurm unhandled` gives, for example by installing a package in the worker's
    environment and restarting the worker. ID may be the beginning of an id.

    \b
    Examples:
      girder-slurm requeue 0b1e7a2c-61f0-4a39-9c53-7d2e1f9a8b44
      girder-slurm requeue --all
    """  # noqa: D301 - click wants the character
    from girder_worker_slurm.cli.kept_messages import kept_messages, select, send_again  # noqa: PLC0415
    from girder_worker_slurm.cli.site import site_jobs_root, site_settings  # noqa: PLC0415
    from girder_worker_slurm.doctor.broker_connection import broker_connection  # noqa: PLC0415

    if bool(ids) == all_of_them:
        msg = "Give the ids of messages, or --all."
        raise click.UsageError(msg)
    settings = site_settings()
    root = site_jobs_root(settings)
    kept = kept_messages(root)
    chosen = kept if all_of_them else select(kept, ids)
    sent, refused = [], []
    if chosen:
        with broker_connection(settings.celery, timeout_seconds=_BROKER_SECONDS) as broker:
            for message in chosen:
                try:
                    name = send_again(root, message, broker, queue=queue)
                except Refusal as refusal:
                    # One that cannot be sent must not hold up the others.
                    refused.append(refusal.message)
                    continue
                sent.append({"id": message.message_id, "task": message.task, "queue": name})
                if not as_json:
                    click.echo(f"{message.message_id} is in the queue {name} again.")
    if as_json:
        print_json(sent)
    elif not chosen:
        click.echo("No messages are kept.")
    if refused:
        raise Refusal("\n".join(refused))
