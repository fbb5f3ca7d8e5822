"""RabbitMQ over TLS: jobs come and results go that way, and a broker that does not prove who it is gets no password."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.support.girder_site import SUCCESS
from tests.support.tls_front import Authority, tls_front
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site

pytestmark = pytest.mark.girder


@pytest.fixture
def place(site: Site) -> Iterator[Path]:
    """A directory that the worker's user can read; no other worker takes tasks meanwhile."""
    site.worker.stop()
    place = site.stack.shared / f"tls-{uuid.uuid4().hex[:6]}"
    subprocess.run(site.stack.as_user(["mkdir", str(place)]), check=True)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def _over_tls(url: str, host: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(("amqps", f"{parts.username}:{parts.password}@{host}:{port}", parts.path, "", ""))


def _said(worker: Worker, *arguments: str) -> subprocess.CompletedProcess[str]:
    """How a command ends that is to end by itself."""
    worker.config.write_text(
        f"[jobs]\nroot = {worker.root}\n[singularity]\nsif_image_path = {worker.sif}\n{worker.extra_config}",
        encoding="utf-8",
    )
    return worker.attempt(*arguments, **worker.environment)


def test_a_job_runs_with_a_broker_over_tls(site: Site, folder: str, place: Path) -> None:
    plain = site.stack["GIRDER_WORKER_BROKER"]
    right, wrong = Authority.make(place / "right"), Authority.make(place / "wrong")
    with tls_front(urlsplit(plain).port or 5672, right) as front:
        worker = Worker(site.stack, place / "jobs", site.worker.sif)
        worker.environment = {"GIRDER_WORKER_BROKER": _over_tls(plain, "localhost", front.port)}

        # Whoever is at the other end has not the certificate of this authority, or not the name of this host.
        worker.extra_config = f"[celery]\nbroker_ca = {wrong.ca}\n"
        refused = _said(worker, "worker")
        assert refused.returncode != 0
        assert "does not prove who it is: unable to get local issuer certificate" in refused.stderr
        assert "broker_ca" in refused.stderr
        examined = _said(worker, "doctor", "--no-probe")
        assert "does not prove who it is" in examined.stdout
        assert "broker_ca" in examined.stdout

        worker.extra_config = f"[celery]\nbroker_ca = {right.ca}\n"
        worker.environment = {"GIRDER_WORKER_BROKER": _over_tls(plain, "127.0.0.1", front.port)}
        refused = _said(worker, "worker")
        assert refused.returncode != 0
        assert "does not prove who it is" in refused.stderr
        assert urlsplit(plain).password not in refused.stderr + refused.stdout + examined.stdout
        assert front.accepted == 0

        worker.environment = {"GIRDER_WORKER_BROKER": _over_tls(plain, "localhost", front.port)}
        worker.start()
        try:
            assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
        finally:
            worker.stop()
        assert front.accepted > 1
