"""The distribution is also loaded inside the Girder server and its local worker: there it changes nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from tests.support.girder_site import wait_until

if TYPE_CHECKING:
    from tests.support.stack import Stack

pytestmark = pytest.mark.girder

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def server_environment(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """The environment of Girder's own processes, with our packages and their entry point beside theirs."""
    information = tmp_path / "girder_worker_slurm-0.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: girder-worker-slurm\nVersion: 0.0\n")
    (information / "entry_points.txt").write_text(
        "[girder_worker_plugins]\nslurm = girder_worker_slurm:SlurmPlugin\n"
    )
    names = (
        "GIRDER_MONGO_URI",
        "GIRDER_NOTIFICATION_REDIS_URL",
        "GIRDER_WORKER_BROKER",
        "GIRDER_WORKER_BACKEND",
    )
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{tmp_path}:{REPOSITORY}",
        "PYTHONUNBUFFERED": "1",
        "C_FORCE_ROOT": "1",
        # As in a DSA container, which has the directory of SIFs mounted.
        "SIF_IMAGE_PATH": str(tmp_path / "SIF"),
        **{name: stack[name] for name in names},
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def test_girder_s_local_worker_stays_as_it_is(
    stack: Stack, server_environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "local.log"
    command = [
        stack["GIRDER_PYTHON"],
        "-m",
        "celery",
        "-A",
        "girder_worker.app",
        "worker",
        "-Q",
        "local",
        "-n",
        "plugin-test@%h",
        "--loglevel=INFO",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=server_environment, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until("the local worker is ready", lambda: " ready" in log.read_text(), seconds=60)
    finally:
        _end(process)
    text = log.read_text()
    assert "Traceback" not in text
    assert "taken up" not in text
    assert not (tmp_path / "SIF").exists()


def test_the_girder_server_starts_with_the_plugin_beside_it(
    stack: Stack, server_environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(stack["GIRDER_PYTHON"]).with_name("girder"))
    log = tmp_path / "girder.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=server_environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def version() -> object:
        try:
            return requests.get(f"http://127.0.0.1:{port}/api/v1/system/version", timeout=5).json()
        except requests.ConnectionError:
            return None

    try:
        answer = wait_until(
            "Girder answers",
            version,
            seconds=60,
            give_up=lambda: log.read_text() if process.poll() is not None else "",
        )
        assert answer["release"].startswith("5.")
    finally:
        _end(process)


def test_the_plugin_is_found_and_imports_nothing_where_slurm_is_not_served(
    stack: Stack, server_environment: dict[str, str]
) -> None:
    code = (
        "import sys, girder_worker.app as a; from girder_worker.entrypoint import get_extensions;"
        "print(get_extensions(a.app));"
        "print([m for m in sys.modules if m.startswith('girder_worker_slurm.')]);"
        "print(a.app.tasks['girder_worker.docker.tasks.docker_run'].Strategy if 'girder_worker.docker.tasks.docker_run' in a.app.tasks else None)"
    )
    env = {name: value for name, value in server_environment.items() if name != "SIF_IMAGE_PATH"}
    done = subprocess.run(
        [stack["GIRDER_PYTHON"], "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    found, modules, strategy = done.stdout.splitlines()[-3:]
    assert "'slurm'" in found
    assert modules == "[]"
    assert "girder_worker_slurm" not in strategy
