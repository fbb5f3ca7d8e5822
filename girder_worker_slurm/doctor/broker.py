"""The broker and its queues: can we get in, and does anyone else take our tasks?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_slurm.doctor.broker_connection import (
    BrokerNotTrusted,
    BrokerRefused,
    BrokerUnreachable,
    CertificateRefused,
    broker_connection,
    shown_address,
)
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from girder_worker_slurm.doctor.broker_connection import QueueFacts
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.settings import Settings

CHECK = "broker"
TRUST_REMEDY = "Set `broker_ca` in [celery] to the file of the authority that signed its certificate, or correct the host in `broker`."
CERTIFICATE_REMEDY = (
    "Set `broker_cert` and `broker_key` in [celery] to the files of a certificate, valid today, of an authority that this"
    " RabbitMQ trusts (its `ssl_options.cacertfile`)."
)


def check_broker(settings: Settings, *, running_workers: int, timeout_seconds: float) -> Iterator[Finding]:
    """Logs in and asks for each queue; takes no message and makes no queue."""
    place = shown_address(settings.celery.broker.get_secret_value())
    try:
        with broker_connection(settings.celery, timeout_seconds=timeout_seconds) as broker:
            yield ok(CHECK, f"{place} lets us in.")
            queues = {name: broker.queue(name) for name in settings.celery.queues}
    except BrokerUnreachable as error:
        yield fail(
            CHECK,
            str(error),
            "Start RabbitMQ, open its port to this machine, or correct `broker` in [celery].",
        )
        return
    except BrokerNotTrusted as error:
        yield fail(CHECK, str(error), TRUST_REMEDY)
        return
    except CertificateRefused as error:
        yield fail(CHECK, str(error), CERTIFICATE_REMEDY)
        return
    except SettingsInvalid as error:
        yield fail(CHECK, str(error), "Correct the file, or the setting.")
        return
    except BrokerRefused as error:
        yield fail(CHECK, str(error), "Correct user, password and virtual host of `broker` in [celery].")
        return
    for name, facts in queues.items():
        yield from judge_queue(name, facts, running_workers)


def judge_queue(name: str, facts: QueueFacts | None, running_workers: int) -> Iterator[Finding]:
    """What a queue's numbers mean, when so many workers of this jobs root run."""
    check = f"queue {name}"
    if facts is None:
        yield warn(
            check,
            "It does not exist yet.",
            "Start the worker, which makes it, or correct `queues` in [celery] if the name is not the one Girder uses.",
        )
        return
    numbers = f"{_count(facts.messages, 'task')} waiting, {_count(facts.consumers, 'consumer')}"
    if facts.consumers > running_workers:
        others = facts.consumers - running_workers
        yield warn(
            check,
            f"{numbers}, but {_count(running_workers, 'worker')} of this jobs root: {others} more"
            f" {'takes' if others == 1 else 'take'} tasks from it.",
            "Stop the other worker (in a stock deployment the Docker container `worker`), or give this one a queue of"
            " its own in [celery] queues.",
        )
    elif facts.consumers < running_workers:
        yield warn(
            check,
            f"{numbers}, although {_count(running_workers, 'worker')} of this jobs root"
            f" {'runs' if running_workers == 1 else 'run'}.",
            "Look into the worker's log: it is paused (`max_accepted`, a full disk) or has lost the broker.",
        )
    else:
        yield ok(check, f"{numbers}.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
