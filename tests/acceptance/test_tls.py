"""RabbitMQ over TLS: jobs come and results go that way, and a broker that does not prove who it is gets no password.

It is RabbitMQ's own listener, with the lines that docs/howto/rabbitmq-tls.md has; it asks for a certificate too.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.girder_site import SUCCESS
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site

pytestmark = pytest.mark.girder


@pytest.fixture
def worker(site: Site) -> Iterator[Worker]:
    """One that finds RabbitMQ by TLS, and is not started yet; no other worker takes tasks meanwhile."""
    site.worker.stop()
    place = site.stack.shared / f"tls-{uuid.uuid4().hex[:6]}"
    subprocess.run(site.stack.as_user(["mkdir", str(place)]), check=True)
    worker = Worker(site.stack, place / "jobs", site.worker.sif)
    worker.environment = {"GIRDER_WORKER_BROKER": site.stack["RABBITMQ_TLS_URL"]}
    yield worker
    worker.stop()
    shutil.rmtree(place)


def _said(worker: Worker, celery: str, *command: str, **environment: str) -> str:
    """What a command says that ends by itself and not well, with these lines in [celery]."""
    files = f"[jobs]\nroot = {worker.root}\n[singularity]\nsif_image_path = {worker.sif}\n"
    worker.config.write_text(f"{files}[celery]\n{celery}", encoding="utf-8")
    done = worker.attempt(*command, **environment)
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    password = urlsplit(worker.environment["GIRDER_WORKER_BROKER"]).password
    assert password
    assert password not in said
    return said


def test_a_job_runs_with_a_broker_over_tls(site: Site, folder: str, worker: Worker) -> None:
    url, files = site.stack["RABBITMQ_TLS_URL"], Path(site.stack["RABBITMQ_TLS_DIR"])
    trust = f"broker_ca = {files / 'ca.pem'}\n"

    # Whoever is at the other end has no certificate of an authority that the system knows, or not the name of this host.
    for command in (("worker",), ("doctor", "--no-probe")):
        said = _said(worker, "", *command)
        assert "does not prove who it is: self-signed certificate in certificate chain" in said
        assert "broker_ca" in said
    by_number = url.replace("@localhost:", "@127.0.0.1:")
    said = _said(worker, trust, "worker", GIRDER_WORKER_BROKER=by_number)
    assert "does not prove who it is: IP address mismatch" in said

    # It asks the same of the worker.
    for command in (("worker",), ("doctor", "--no-probe")):
        said = _said(worker, trust, *command)
        assert "wants a certificate of us: certificate required" in said
        assert "broker_cert" in said
    stranger = worker.root.with_name("stranger")
    _self_signed(site, stranger)
    said = _said(worker, f"{trust}broker_cert = {stranger}.pem\nbroker_key = {stranger}-key.pem\n", "worker")
    assert "does not take our certificate" in said

    worker.extra_config = (
        f"[celery]\n{trust}broker_cert = {files / 'client.pem'}\nbroker_key = {files / 'client-key.pem'}\n"
    )
    worker.start()
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    connections = subprocess.run(
        [site.stack["RABBITMQ_CTL"], "--quiet", "list_connections", "ssl", "peer_cert_subject"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert f"true\tCN={site.stack.user}" in connections.splitlines()


def _self_signed(site: Site, path: Path) -> None:
    """A certificate of no authority that RabbitMQ knows, for the worker's user."""
    key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-noenc",
        "-keyout",
        f"{path}-key.pem",
    ]
    argv = ["openssl", "req", "-x509", *key, "-subj", f"/CN={site.stack.user}", "-out", f"{path}.pem"]
    subprocess.run(site.stack.as_user(argv), check=True, capture_output=True, timeout=60)
