"""The distribution is also loaded inside the Girder server and its local worker: there it changes nothing."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import requests

from tests.support.girder_site import wait_until
from tests.support.plugin_girder import running_girder, server_environment
from tests.support.services import end

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack

pytestmark = pytest.mark.girder


@pytest.fixture
def environment(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """The environment of Girder's own processes, with our packages and their entry points beside theirs."""
    return server_environment(stack, tmp_path)


def test_girder_s_local_worker_stays_as_it_is(
    stack: Stack, environment: dict[str, str], tmp_path: Path
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
            command, env=environment, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until("the local worker is ready", lambda: " ready" in log.read_text(), seconds=60)
    finally:
        end(process)
    text = log.read_text()
    assert "Traceback" not in text
    assert "taken up" not in text
    assert not (tmp_path / "SIF").exists()


def test_the_girder_server_starts_with_the_plugin_beside_it(
    stack: Stack, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "girder.log"
    with running_girder(stack, environment, log) as api:
        assert requests.get(f"{api}/system/version", timeout=30).json()["release"].startswith("5.")
        assert requests.get(f"{api}/worker_slurm/options", timeout=30).status_code == 401
    assert 'Loaded plugin "worker_slurm"' in log.read_text()


def test_a_girder_that_the_server_s_plugin_does_not_fit_starts_without_it(
    stack: Stack, environment: dict[str, str], tmp_path: Path
) -> None:
    # As if this Girder had no such module any more.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['girder_worker_slurm.server_plugin.endpoint'] = None\n"
    )
    log = tmp_path / "girder.log"
    with running_girder(stack, environment, log) as api:
        assert requests.get(f"{api}/worker_slurm/options", timeout=30).status_code == 404
    assert "goes on without it" in log.read_text()


def test_the_plugin_is_found_and_imports_nothing_where_slurm_is_not_served(
    stack: Stack, environment: dict[str, str]
) -> None:
    code = (
        "import sys, girder_worker.app as a; from girder_worker.entrypoint import get_extensions;"
        "print(get_extensions(a.app));"
        "print([m for m in sys.modules if m.startswith('girder_worker_slurm.')]);"
        "print(a.app.tasks['girder_worker.docker.tasks.docker_run'].Strategy if 'girder_worker.docker.tasks.docker_run' in a.app.tasks else None)"
    )
    env = {name: value for name, value in environment.items() if name != "SIF_IMAGE_PATH"}
    done = subprocess.run(
        [stack["GIRDER_PYTHON"], "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    found, modules, strategy = done.stdout.splitlines()[-3:]
    assert "'slurm'" in found
    assert modules == "[]"
    assert "girder_worker_slurm" not in strategy
