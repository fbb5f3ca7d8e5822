"""How worker and broker prove to each other who they are."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from girder_worker_slurm.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from girder_worker_slurm.settings import CelerySection

TLS_PORT = 5671
#: What a broker says, in OpenSSL's words, that does not take a certificate or misses one.
_ABOUT_OUR_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNSUPPORTED_CERTIFICATE",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN",
    "UNKNOWN_CA",
    "ACCESS_DENIED",
    "HANDSHAKE_FAILURE",  # without a certificate, before TLS 1.3
)


def tls_options(celery: CelerySection) -> dict[str, Any] | None:
    """What py-amqp needs for a broker with an `amqps://` address; None for other addresses.

    By itself py-amqp compares no host name, so that any certificate of a known authority would do. Raises
    SettingsInvalid if a file of `broker_ca`, `broker_cert` or `broker_key` cannot be used.
    """
    address = urlsplit(celery.broker.get_secret_value())
    if address.scheme != "amqps":
        return None
    options: dict[str, Any] = {
        "cert_reqs": ssl.CERT_REQUIRED,
        "server_hostname": address.hostname,
        "ca_certs": None,
    }
    if celery.broker_ca is not None:
        _try_authorities(celery.broker_ca)
        options["ca_certs"] = str(celery.broker_ca)
    if celery.broker_cert is not None:
        key = celery.broker_key or celery.broker_cert
        _try_certificate(celery.broker_cert, key)
        options |= {"certfile": str(celery.broker_cert), "keyfile": str(key)}
    return options


def certificate_refusal(error: BaseException, celery: CelerySection, *, timeout_seconds: float) -> str:
    """What the broker has against our certificate, or that it wants one; empty if something else went wrong.

    Since TLS 1.3 it says so only when we take the connection as made. Who begins to write then, as py-amqp does, often
    finds it closed and never reads why. So it is tried again, only reading.
    """
    if isinstance(error, (ssl.SSLEOFError, ConnectionError)):
        error = _after_the_handshake(celery, timeout_seconds) or error
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    if "_ALERT_" in reason and reason.endswith(_ABOUT_OUR_CERTIFICATE):
        return reason.partition("_ALERT_")[2].replace("_", " ").lower()
    return ""


def _after_the_handshake(celery: CelerySection, timeout_seconds: float) -> ssl.SSLError | None:
    options = tls_options(celery)
    address = urlsplit(celery.broker.get_secret_value())
    if options is None or address.hostname is None:
        return None
    context = ssl.create_default_context(cafile=options["ca_certs"])
    if "certfile" in options:
        context.load_cert_chain(options["certfile"], options["keyfile"])
    try:
        with (
            socket.create_connection((address.hostname, address.port or TLS_PORT), timeout_seconds) as plain,
            context.wrap_socket(plain, server_hostname=address.hostname) as connection,
        ):
            connection.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass
    return None


def _try_authorities(ca: Path) -> None:
    with _usable("broker_ca", ca):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)


def _try_certificate(certificate: Path, key: Path) -> None:
    name = "broker_cert" if key == certificate else "broker_key"
    with _usable(name, key):
        status = key.stat()
        # As PostgreSQL's clients have it: root may lend a key to a group.
        if status.st_mode & (0o077 if status.st_uid else 0o027):
            msg = f"{key}, the file `{name}` of [celery], can be read by others: it must have mode 0600."
            raise SettingsInvalid(msg)
        with key.open("rb"):
            pass
    with _usable("broker_cert", certificate):
        with certificate.open("rb"):
            pass
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=_no_passphrase)
        except _WantsPassphraseError:
            msg = (
                f"{key}, the file `{name}` of [celery], is locked with a passphrase, which nobody could type."
            )
            raise SettingsInvalid(msg) from None


class _WantsPassphraseError(Exception):
    """OpenSSL would ask on the terminal."""


def _no_passphrase() -> str:
    raise _WantsPassphraseError


@contextlib.contextmanager
def _usable(setting: str, path: Path) -> Iterator[None]:
    """Says of which setting a file is that cannot be read, or holds something else."""
    file = f"{path}, the file `{setting}` of [celery],"
    try:
        yield
    except ssl.SSLError as error:
        msg = f"{file} does not hold what it should, as PEM: {error.reason or error}."
        raise SettingsInvalid(msg) from error
    except OSError as error:
        msg = f"{file} cannot be read: {error.strerror}."
        raise SettingsInvalid(msg) from error
