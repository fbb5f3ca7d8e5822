"""PURE: the environment and worker.dist.cfg → where Girder finds its broker and leaves results."""

from __future__ import annotations

import configparser
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from .errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What says it in the environment, the first that is set wins: Celery's own names win over the others in Girder too.
BROKER_NAMES = ("CELERY_BROKER_URL", "GIRDER_WORKER_BROKER")
BACKEND_NAMES = ("CELERY_RESULT_BACKEND", "GIRDER_WORKER_BACKEND")
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_REMEDY = "set GIRDER_WORKER_BROKER and GIRDER_WORKER_BACKEND in .env, or `broker` and `backend` in [celery] of that file"


@dataclass(frozen=True)
class OwnBroker:
    """The RabbitMQ beside Girder: a worker outside calls its machine localhost, which inside a container is the container."""

    host: str
    user: str
    password: str


def broker_urls(
    environment: Mapping[str, str], file_name: str, text: str | None, own: OwnBroker
) -> tuple[str, str]:
    """Broker and result backend.

    What the environment says is taken as it is. What the file says is too if it names another machine; an address
    of this machine stands for the RabbitMQ beside Girder, with the user and password of .env.

    Raises:
        SetupError: neither says anything, or the file is not one of those files.
    """
    broker = _first(environment, BROKER_NAMES)
    backend = _first(environment, BACKEND_NAMES)
    if broker and backend:
        return broker, backend
    if text is None:
        missing = "the broker" if not broker else "the result backend"
        raise SetupError(
            f"Nothing says where {missing} is: there is no {file_name}, and the environment names none. {_REMEDY}."
        )
    section = _celery_section(file_name, text)
    return (
        broker or _seen_from_a_container(_value(section, "broker", file_name), own, file_name),
        backend or _seen_from_a_container(_value(section, "backend", file_name), own, file_name),
    )


def without_password(url: str) -> str:
    """An address that may be printed."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _celery_section(file_name: str, text: str) -> Mapping[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text, source=file_name)
    except configparser.Error as error:
        raise SetupError(f"{file_name} cannot be read: {error}. It has to be a worker.dist.cfg.") from error
    if not parser.has_section("celery"):
        raise SetupError(f"{file_name} has no section [celery]: {_REMEDY}.")
    return parser["celery"]


def _value(section: Mapping[str, str], name: str, file_name: str) -> str:
    value = section.get(name, "").strip()
    if not value:
        raise SetupError(f"{file_name} has no `{name}` in [celery]: {_REMEDY}.")
    return value


def _seen_from_a_container(url: str, own: OwnBroker, file_name: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise SetupError(
            f"{file_name}: an address in [celery] is not understood ({error}): {_REMEDY}."
        ) from error
    if not parts.scheme or not host:
        raise SetupError(
            f"{file_name}: `{without_password(url)}` in [celery] is no address like amqp://USER:PASSWORD@HOST/: {_REMEDY}."
        )
    if host not in _THIS_MACHINE:
        return url
    account = f"{quote(own.user, safe='')}:{quote(own.password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{account}@{own.host}:5672"))
