"""Do the passwords of .env open what is there? RabbitMQ and MongoDB take them on their first start only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import amqp.exceptions
import kombu
import pymongo
import pymongo.errors

from .broker import without_password
from .errors import LoginRefused, SetupError

if TYPE_CHECKING:
    from .environment import Site

_SECONDS = 20
_NOT_AUTHENTICATED, _NOT_AUTHORIZED = 18, 13


def check_broker(url: str) -> None:
    """Returns if the broker lets this user in; raises LoginRefused if it does not, SetupError if it does not answer."""
    connection = kombu.Connection(url, connect_timeout=_SECONDS)
    try:
        connection.connect()
    except amqp.exceptions.AccessRefused as error:
        raise LoginRefused(
            f"RabbitMQ refuses the user `{connection.userid}` with the password that is in .env now. It keeps the one of its first start. "
            "Put the earlier RABBITMQ_PASSWORD back into .env, or give RabbitMQ the new one:\n"
            f"  docker compose exec rabbitmq rabbitmqctl change_password {connection.userid}\n"
            "which asks for it; then `docker compose up -d --wait` again, and the same for the worker's worker.local.cfg."
        ) from error
    except connection.connection_errors as error:
        raise SetupError(f"The broker at {without_password(url)} does not answer: {error}") from error
    finally:
        connection.release()


def check_database(site: Site) -> str:
    """Makes Girder's user in an empty MongoDB, else tries its password. Has to run on MongoDB's own host.

    Returns what was found or done. Raises LoginRefused if there are users and ours is not let in.
    """
    if site.environment.get("GIRDER_MONGO_URI"):
        return "MongoDB: as GIRDER_MONGO_URI says"
    user, password = site.mongodb_user, site.secret("mongodb_password")
    refused = _login(user, password)
    if refused is None:
        return f"MongoDB lets `{user}` in"
    with _client() as client:
        try:
            # The first user has to be able to make others; all that is in here is Girder's.
            client.admin.command("createUser", user, pwd=password, roles=["root"])
        except pymongo.errors.OperationFailure as error:
            if error.code != _NOT_AUTHORIZED:
                raise SetupError(f"MongoDB did not make the user `{user}`: {error}") from error
            raise LoginRefused(
                f"MongoDB refuses the user `{user}` with the password that is in .env now. It keeps the one of its first start: "
                "put the earlier MONGODB_PASSWORD back into .env."
            ) from refused
    return f"MongoDB has the new user `{user}`"


def _login(user: str, password: str) -> pymongo.errors.OperationFailure | None:
    with _client(username=user, password=password, authSource="admin") as client:
        try:
            client.admin.command("ping")
        except pymongo.errors.OperationFailure as error:
            if error.code == _NOT_AUTHENTICATED:
                return error
            raise SetupError(f"MongoDB does not let `{user}` in: {error}") from error
        except pymongo.errors.PyMongoError as error:
            raise SetupError(f"MongoDB does not answer: {error}") from error
    return None


def _client(**account: Any) -> pymongo.MongoClient[dict[str, Any]]:
    return pymongo.MongoClient("127.0.0.1", 27017, serverSelectionTimeoutMS=_SECONDS * 1000, **account)
