"""The broker, as the command line reaches it: through kombu, without Celery."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from girder_worker_slurm.doctor.broker_tls import TLS_PORT, certificate_refusal, tls_options
from girder_worker_slurm.errors import SlurmWorkerError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from girder_worker_slurm.settings import CelerySection


class BrokerUnreachable(Unreachable):
    """The broker did not answer."""


class BrokerRefused(SlurmWorkerError):
    """The broker did not let us in, or refused what we asked."""


class BrokerNotTrusted(SlurmWorkerError):
    """Whoever answered at the broker's address did not prove to be the broker."""


class CertificateRefused(SlurmWorkerError):
    """The broker does not take the certificate that we showed, or wants one."""


@dataclass(frozen=True)
class QueueFacts:
    """A queue as the broker sees it."""

    messages: int
    consumers: int


class BrokerConnection:
    """An open connection; `broker_connection` makes and closes it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def queue(self, name: str) -> QueueFacts | None:
        """What the broker says about a queue; None if there is none of that name. Nothing is made or taken."""
        try:
            with contextlib.closing(self._connection.channel()) as channel:
                answer = channel.queue_declare(queue=name, passive=True)
        except self._connection.channel_errors as error:
            if "NOT_FOUND" in str(error) or getattr(error, "code", 0) == 404:
                return None
            raise
        return QueueFacts(messages=int(answer[1] or 0), consumers=int(answer[2] or 0))

    def publish(self, queue: str, body: bytes, stored: Mapping[str, Any]) -> None:
        """Sends a stored message to a queue again; returns when the broker has it."""
        headers = dict(stored["headers"])
        properties = {
            name: stored["properties"][name]
            for name in ("correlation_id", "reply_to", "priority", "message_id", "type", "app_id")
            if stored["properties"].get(name) is not None
        }
        with contextlib.closing(self._connection.channel()) as channel:
            self._connection.Producer(channel, auto_declare=False).publish(
                body,
                exchange="",
                routing_key=queue,
                content_type=stored["content_type"] or "application/octet-stream",
                content_encoding=stored["content_encoding"] or "binary",
                headers=headers,
                # kombu has unpacked the body on its way in and left the header, so it has to be packed again.
                compression=headers.get("compression"),
                delivery_mode=2,
                timeout=30,
                **properties,
            )


@contextlib.contextmanager
def broker_connection(celery: CelerySection, *, timeout_seconds: float) -> Iterator[BrokerConnection]:
    """A connection to the broker.

    Raises BrokerUnreachable, BrokerNotTrusted, CertificateRefused or BrokerRefused without any password in the words,
    and SettingsInvalid if a file for TLS cannot be used.
    """
    import socket  # noqa: PLC0415

    from kombu import Connection  # noqa: PLC0415 - most commands of the command line never need it
    from kombu.exceptions import KombuError, OperationalError  # noqa: PLC0415

    url = celery.broker.get_secret_value()
    place = shown_address(url)
    connection = Connection(
        url,
        connect_timeout=timeout_seconds,
        transport_options={"confirm_publish": True, "max_retries": 0},
        ssl=tls_options(celery) or False,
    )
    errors = (
        *connection.connection_errors,
        *connection.channel_errors,
        KombuError,
        OperationalError,
        OSError,
    )
    try:
        connection.connect()
        yield BrokerConnection(connection)
    except errors as error:
        words = _words(error)
        if refusal := certificate_refusal(error, celery, timeout_seconds=timeout_seconds):
            what = "does not take our certificate" if celery.broker_cert else "wants a certificate of us"
            msg = f"The broker {place} {what}: {refusal}."
            raise CertificateRefused(msg) from error
        if isinstance(error, ssl.SSLError):
            words = getattr(error, "verify_message", "") or words
            msg = f"The broker {place} does not prove who it is: {words.rstrip('.')}."
            raise BrokerNotTrusted(msg) from error
        if getattr(error, "code", 0) in (403, 530) or "ACCESS_REFUSED" in str(error):
            msg = f"The broker {place} refused: {words}."
            raise BrokerRefused(msg) from error
        if isinstance(error, socket.timeout):
            words = f"no answer within {timeout_seconds:g} s"
        msg = f"The broker {place} cannot be reached: {words}."
        raise BrokerUnreachable(msg) from error
    finally:
        with contextlib.suppress(*errors):
            connection.release()


def shown_address(url: str) -> str:
    """Where a broker is, for people: host and port, and the virtual host unless it is `/`."""
    parts = urlsplit(url)
    port = parts.port or (TLS_PORT if parts.scheme == "amqps" else 5672)
    return f"{parts.hostname or ''}:{port}{parts.path}".rstrip("/")


def _words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
