"""Girder with its plugins, set up ready for Slicer CLI tasks, and Girder's own local worker."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from . import certificates
from .errors import DevstackError
from .files import ensure_directory
from .ports import HOST, exchange
from .processes import ProcessSpec
from .python_environment import PythonEnvironment
from .rabbitmq import BROKER_USER
from .service import Context, Service

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "5.0.21"
ADMIN_LOGIN = "admin"
_DISTRIBUTIONS = ("girder", "girder-jobs", "girder-worker", "girder-plugin-worker", "girder-slicer-cli-web")
_ASYNC_TIMEOUT = "async-timeout; python_full_version < '3.11.3'"  # redis needs it and does not say so


def broker_url(context: Context) -> str:
    """Where workers take tasks from."""
    password = context.secrets().rabbitmq_password
    return f"amqp://{BROKER_USER}:{password}@{HOST}:{context.port('rabbitmq')}//"


def broker_tls_url(context: Context) -> str:
    """The same broker over TLS, which asks for a certificate as well."""
    password, port = context.secrets().rabbitmq_password, context.port("rabbitmq-tls")
    return f"amqps://{BROKER_USER}:{password}@{certificates.SERVER_NAME}:{port}//"


def backend_url(context: Context) -> str:
    """Where workers leave results: the same broker, as in a stock deployment."""
    return "rpc://" + broker_url(context).partition("://")[2]


def mongo_uri(context: Context) -> str:
    """Girder's database."""
    return f"mongodb://{HOST}:{context.port('mongodb')}/girder"


def redis_url(context: Context) -> str:
    """Girder's channel for notifications."""
    return f"redis://{HOST}:{context.port('redis')}"


def girder_url(context: Context) -> str:
    """Girder's root address."""
    return f"http://{HOST}:{context.port('girder')}"


def _environment(context: Context) -> dict[str, str]:
    environment = context.service_environment()
    environment["PATH"] = f"{context.layout.girder_venv / 'bin'}:{environment['PATH']}"
    return {
        **environment,
        "GIRDER_MONGO_URI": mongo_uri(context),
        "GIRDER_NOTIFICATION_REDIS_URL": redis_url(context),
        "GIRDER_WORKER_BROKER": broker_url(context),
        "GIRDER_WORKER_BACKEND": backend_url(context),
        "PYTHONUNBUFFERED": "1",
    }


class Girder(Service):
    """The web server, run by the service account."""

    name = "girder"
    needs = ("mongodb", "redis", "rabbitmq")
    port_names = ("girder",)
    grace_seconds = 8

    def install(self) -> None:
        """Make the virtual environment with Girder and the plugins."""
        environment = PythonEnvironment(self.context.layout.girder_venv)
        versions = environment.versions()
        if all(versions.get(name) == VERSION for name in _DISTRIBUTIONS):
            return
        with self.context.report.step(f"girder: {VERSION} installed"):
            environment.pip("install", *(f"{name}=={VERSION}" for name in _DISTRIBUTIONS), _ASYNC_TIMEOUT)

    def prepare(self) -> None:
        """Make the assetstore's directory; the job user may read what is in it."""
        ensure_directory(self.context.layout.assetstore, mode=0o755, owner=self.context.service_user)

    def processes(self) -> Sequence[ProcessSpec]:
        """`girder serve`, without the file watcher that its other modes start."""
        program = self.context.layout.girder_venv / "bin" / "girder"
        argv = [
            program,
            "serve",
            "--mode",
            "production",
            "--host",
            HOST,
            "--port",
            str(self.context.port("girder")),
        ]
        return [ProcessSpec(self.name, argv, self.context.service_user, _environment(self.context))]

    def answers(self) -> bool:
        """Whether the API tells its version."""
        question = b"GET /api/v1/system/version HTTP/1.0\r\nHost: localhost\r\n\r\n"
        return (
            b" 200 "
            in exchange(self.context.port("girder"), question, timeout_seconds=10).partition(b"\r\n")[0]
        )

    def after_start(self) -> None:
        """Make administrator, assetstore, task folder and settings where they are missing."""
        password = self.context.secrets().girder_admin_password
        api = _Api(f"{girder_url(self.context)}/api/v1")
        if not api.log_in(ADMIN_LOGIN, password):
            names = {"firstName": "Dev", "lastName": "Stack", "email": "admin@example.com"}
            api.call("POST", "user", login=ADMIN_LOGIN, password=password, admin="true", **names)
            if not api.log_in(ADMIN_LOGIN, password):
                raise DevstackError(
                    "girder: the new administrator cannot log in: `devstack wipe`, then `devstack up`"
                )
        root = str(self.context.layout.assetstore)
        if not any(store.get("root") == root for store in api.call("GET", "assetstore")):
            api.call("POST", "assetstore", name="devstack", type="0", root=root, perms="0644")
        collection = api.find_or_make("collection", "Devstack", text="Devstack", public="true")
        for name in ("Tasks", "Results"):
            parent = {"parentType": "collection", "parentId": collection}
            folder = api.find_or_make("folder", name, **parent, public="true")
            if name == "Tasks" and not api.call("GET", "system/setting", key="slicer_cli_web.task_folder"):
                api.call("PUT", "system/setting", key="slicer_cli_web.task_folder", value=folder)


class GirderLocalWorker(Service):
    """The Celery worker that stock deployments run beside Girder, for tasks on the queue `local`."""

    name = "girder-local-worker"
    needs = ("rabbitmq", "girder")
    grace_seconds = 8

    def processes(self) -> Sequence[ProcessSpec]:
        """One worker process; its name leaves `celery@HOST` to the worker under test."""
        program = self.context.layout.girder_venv / "bin" / "celery"
        argv = [
            program,
            "-A",
            "girder_worker.app",
            "worker",
            "-Q",
            "local",
            "-c",
            "1",
            "-n",
            "local@%h",
            "-l",
            "INFO",
        ]
        return [ProcessSpec(self.name, argv, self.context.service_user, _environment(self.context))]

    def answers(self) -> bool:
        """Nothing that can be asked quickly; that it lives has to do."""
        return True

    def is_ready(self) -> bool:
        """Whether it has said that it takes tasks."""
        return " ready." in self.context.supervisor.log_since_start(self.name)


class _Api:
    """As much of Girder's REST API as the first set-up needs."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._token = ""

    def log_in(self, login: str, password: str) -> bool:
        """Get a token; False when Girder refuses the login."""
        credentials = base64.b64encode(f"{login}:{password}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310  # always http on the loopback address
            f"{self._root}/user/authentication", headers={"Authorization": f"Basic {credentials}"}
        )
        try:
            self._token = self._send(request)["authToken"]["token"]
        except urllib.error.HTTPError:
            return False
        return True

    def call(self, method: str, path: str, **parameters: str) -> Any:  # JSON
        """Girder's answer; raises DevstackError when it refuses."""
        query = urllib.parse.urlencode(parameters)
        in_body = method != "GET"
        url = f"{self._root}/{path}" + ("" if in_body else f"?{query}")
        request = urllib.request.Request(  # noqa: S310  # as above
            url,
            method=method,
            data=query.encode() if in_body else None,
            headers={"Girder-Token": self._token},
        )
        try:
            return self._send(request)
        except urllib.error.HTTPError as error:
            detail = error.read(300).decode(errors="replace")
            raise DevstackError(f"girder: {method} {path} was refused: {detail}") from error

    def find_or_make(self, kind: str, name: str, **parameters: str) -> str:
        """Id of the collection or folder called `name`."""
        search = {key: value for key, value in parameters.items() if key != "public"}
        found = [item for item in self.call("GET", kind, **search) if item["name"] == name]
        if not found:
            parameters = {key: value for key, value in parameters.items() if key != "text"}
            found = [self.call("POST", kind, name=name, **parameters)]
        return str(found[0]["_id"])

    @staticmethod
    def _send(request: urllib.request.Request) -> Any:  # JSON
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as reply:
            return json.load(reply)
