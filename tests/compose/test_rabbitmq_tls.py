"""RabbitMQ of docker compose with TLS, by the commands of docs/howto/rabbitmq-tls.md."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from girder_worker_slurm.doctor.broker_connection import CertificateRefused, broker_connection
from girder_worker_slurm.settings import load_settings
from tests.compose.server import ComposeServer
from tests.support.services import free_port

if TYPE_CHECKING:
    from tests.support.container_host import ContainerHost

_PAGE = Path(__file__).parents[2] / "docs" / "howto" / "rabbitmq-tls.md"


def _commands(heading: str) -> str:
    """The first indented block below a heading of the page."""
    below = _PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    block = re.search(r"(?:^    .*\n)+", below, re.MULTILINE)
    assert block is not None, heading
    return block[0].replace("girder.example.org", "localhost")


def test_rabbitmq_speaks_tls_and_asks_for_a_certificate_if_told_to(
    engine: ContainerHost, tmp_path: Path
) -> None:
    server = ComposeServer.unpack(tmp_path, engine.environment())
    server.run("docker/make-env.sh", "--user", "1234:2345")
    server.run("bash", "-ec", _commands("Certificates"))
    files = server.checkout / "rabbitmq-tls"
    server.run("bash", "-ec", f"cd rabbitmq-tls\n{_commands('If RabbitMQ asks for a certificate')}")
    server.set(
        COMPOSE_PROJECT_NAME="tls",
        COMPOSE_FILE="docker-compose.yaml:docker/rabbitmq-tls.yaml",
        RABBITMQ_PORT=str(free_port()),
        RABBITMQ_TLS_PORT=str(free_port()),
        RABBITMQ_TLS_DIR=str(files),
    )
    files.chmod(0o711)
    try:
        user = server.run("bash", "-ec", _commands("RabbitMQ of docker compose").partition("#")[0])
        os.chown(files / "key.pem", int(user.stdout.split()[-1]), -1)
        env = server.variables()
        account = f"{env['RABBITMQ_USER']}:{env['RABBITMQ_PASSWORD']}"
        variables = {
            "GIRDER_WORKER_BROKER": f"amqps://{account}@localhost:{server.port('RABBITMQ_TLS')}/",
            "GIRDER_WORKER_BROKER_CA": str(files / "ca.pem"),
        }
        ours = {
            "GIRDER_WORKER_BROKER_CERT": str(files / "worker.pem"),
            "GIRDER_WORKER_BROKER_KEY": str(files / "worker-key.pem"),
        }

        server.up("--no-deps", "rabbitmq")
        with broker_connection(load_settings((), variables).celery, timeout_seconds=10) as broker:
            assert broker.queue("celery") is None

        server.set(RABBITMQ_TLS_ASK="true")
        server.up("--no-deps", "--force-recreate", "rabbitmq")
        with (
            pytest.raises(CertificateRefused, match="wants a certificate of us"),
            broker_connection(load_settings((), variables).celery, timeout_seconds=10),
        ):
            pass
        with broker_connection(load_settings((), variables | ours).celery, timeout_seconds=10) as broker:
            assert broker.queue("celery") is None
    finally:
        server.compose("down", "--volumes", check=False)
