"""The worker of a user who has no checkout: pip put it into an environment where nothing of the tests is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site

pytestmark = pytest.mark.girder

REPOSITORY = Path(__file__).parents[2]
#: Runs in a process of its own, as a Celery client: what the worker's queue answers.
CLIENT = """
import json, sys
from girder_worker.app import app
from girder_worker.docker.tasks import docker_run
image, queue, node = sys.argv[1:]
pong = app.control.inspect(destination=[node], timeout=10).ping()
task = docker_run.si(image, pull_image=False, entrypoint="/bin/sh", container_args=["-c", "true"])
print(json.dumps([pong, task.apply_async(queue=queue).get(timeout=90)]))
"""


@pytest.fixture(scope="module")
def environment(stack) -> Path:
    """A virtual environment with the product and what it asks for; tests/run.sh has one made from the wheel."""
    given = os.environ.get("GIRDER_SLURM_CLEAN_VENV")
    if given:
        return Path(given)
    made = stack.shared / "clean-venv"
    scripts = {**os.environ, "GIRDER_WORKER_SLURM_VENV": str(made), "PYTHON": "/usr/bin/python3"}
    for script in ("create.sh", "install.sh"):
        subprocess.run([REPOSITORY / "worker" / script], env=scripts, check=True, timeout=300)
    return made


@pytest.fixture
def worker(site: Site, environment: Path) -> Iterator[Worker]:
    """A worker of that environment with a queue of its own, told everything by environment variables."""
    name = f"clean-{uuid.uuid4().hex[:6]}"
    worker = Worker(
        site.stack,
        site.worker.root.with_name(f"{site.worker.root.name}-{name}"),
        site.worker.sif,
        program=environment / "bin" / "girder-slurm",
        environment={
            "GIRDER_WORKER_SLURM_CONFIG": "",
            "GIRDER_WORKER_SLURM_JOBS_ROOT": str(
                site.worker.root.with_name(f"{site.worker.root.name}-{name}")
            ),
            "GIRDER_WORKER_SLURM_QUEUES": name,
            "GIRDER_WORKER_SLURM_WORKER_ID": name,
            "SIF_IMAGE_PATH": str(site.worker.sif),
        },
    )
    worker.start()
    yield worker
    worker.stop()


def said(site: Site, environment: Path, *arguments: str) -> str:
    done = subprocess.run(
        site.stack.as_user([str(environment / "bin" / "girder-slurm"), *arguments]),
        env=site.stack.user_environment(), cwd="/", capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_it_starts_takes_a_task_and_stops_cleanly(site: Site, worker: Worker) -> None:
    queue = worker.environment["GIRDER_WORKER_SLURM_QUEUES"]
    log = worker.log.read_text()
    node = f"slurm-{queue}@{os.uname().nodename}"
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, site.image, queue, node],
        env=os.environ
        | {name: site.stack[name] for name in ("GIRDER_WORKER_BROKER", "GIRDER_WORKER_BACKEND")},
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [{node: {"ok": "pong"}}, []]
    assert worker.root.stat().st_mode & 0o077 == 0
    process = worker.process
    assert worker.stop() < 20
    assert process is not None
    assert process.returncode == 0
    assert "Traceback" not in log + worker.log.read_text()


def test_its_programs_answer_and_print_what_a_checkout_has_as_files(site: Site, environment: Path) -> None:
    assert said(site, environment, "settings") == (REPOSITORY / "worker.dist.cfg").read_text(encoding="utf-8")
    assert f"ExecStart={environment}/bin/girder-slurm worker\n" in said(site, environment, "service")
    assert said(site, environment, "--version").startswith("girder-slurm, version ")
    assert "Examples:" in said(site, environment, "jobs", "--help")


def test_systemd_understands_the_unit_that_it_prints(site: Site, environment: Path, tmp_path: Path) -> None:
    unit = tmp_path / "girder-worker-slurm.service"
    unit.write_text(said(site, environment, "service"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", unit],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_it_holds_nothing_of_the_tests(environment: Path) -> None:
    listed = subprocess.run(
        [environment / "bin" / "python", "-m", "pip", "list", "--format=json"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert "girder-worker-slurm" in {name.replace("_", "-") for name in names}
    assert not names & {"pytest", "mypy", "nox", "ruff"}
