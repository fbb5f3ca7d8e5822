"""`girder-slurm worker`: checks the settings and becomes the Celery worker."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from girder_worker_slurm.errors import StartRefused

if TYPE_CHECKING:
    from girder_worker_slurm.settings import Settings

#: How long the start waits for the broker to say whether the password is right.
_BROKER_SECONDS = 5.0


@click.command("worker", short_help="Start the worker.", context_settings={"ignore_unknown_options": True})
@click.option("--print-command", is_flag=True, help="Print the Celery command instead of running it.")
@click.argument("celery_arguments", nargs=-1, type=click.UNPROCESSED)
def worker_command(celery_arguments: tuple[str, ...], *, print_command: bool) -> None:
    """Start the worker. Further CELERY_ARGUMENTS are passed on to `celery worker`."""
    from girder_worker_slurm.cli.site import site_settings  # noqa: PLC0415 - the help must come at once

    settings = site_settings()
    settings.jobs_root  # noqa: B018 - says what is missing before Celery is started
    command = celery_command(settings, celery_arguments)
    if print_command:
        click.echo(" ".join(command))
        return
    refuse_wrong_password(settings)
    # Records, inputs and logs hold what others must not read, however the worker was started.
    os.umask(0o077)
    # By environment, not by argument: the addresses hold passwords, and arguments are seen by everyone.
    os.environ.update(
        GIRDER_WORKER_SLURM_ENABLED="1",
        GIRDER_WORKER_BROKER=settings.celery.broker.get_secret_value(),
        GIRDER_WORKER_BACKEND=settings.celery.backend.get_secret_value(),
    )
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        # They were read as settings; left here, Celery would prefer them to what the settings say.
        os.environ.pop(name, None)
    if settings.girder.api_url:
        os.environ["GIRDER_WORKER_API_URL"] = settings.girder.api_url
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - no shell; the worker takes this process's place


def refuse_wrong_password(settings: Settings) -> None:
    """Raises StartRefused if the broker does not let us in, or does not prove who it is; one that is down for the moment is no reason.

    Raises SettingsInvalid if a file for TLS cannot be used.
    """
    from girder_worker_slurm.doctor.broker import CERTIFICATE_REMEDY, TRUST_REMEDY  # noqa: PLC0415
    from girder_worker_slurm.doctor.broker_connection import (  # noqa: PLC0415 - brings kombu
        BrokerNotTrusted,
        BrokerRefused,
        BrokerUnreachable,
        CertificateRefused,
        broker_connection,
    )

    try:
        with broker_connection(settings.celery, timeout_seconds=_BROKER_SECONDS):
            pass
    except BrokerUnreachable:
        return
    except BrokerNotTrusted as error:
        msg = f"{error} {TRUST_REMEDY}"
        raise StartRefused(msg) from error
    except CertificateRefused as error:
        msg = f"{error} {CERTIFICATE_REMEDY}"
        raise StartRefused(msg) from error
    except BrokerRefused as error:
        msg = f"{error} Correct user, password and virtual host of `broker` in [celery]."
        raise StartRefused(msg) from error


def celery_command(settings: Settings, extra: tuple[str, ...] = ()) -> list[str]:
    """The command line of the Celery worker."""
    from girder_worker_slurm.assembly import worker_id  # noqa: PLC0415 - brings the whole worker

    return [
        sys.executable,
        "-m",
        "celery",
        "--app=girder_worker.app",
        "worker",
        # Tasks of other packages run in threads; a process each would cost 45 MB.
        "--pool=threads",
        f"--concurrency={settings.celery.concurrency}",
        "--prefetch-multiplier=1",
        "-Ofair",
        "--without-gossip",
        f"--queues={','.join(settings.celery.queues)}",
        f"--hostname=slurm-{worker_id(settings)}@%h",
        "--loglevel=INFO",
        *extra,
    ]
