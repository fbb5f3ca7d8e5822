"""Celery callers of `docker_run`: results, failures, links, chains and errbacks are what they expect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site
from tests.support.girder_site import CANCELED, ERROR, wait_until

pytestmark = pytest.mark.girder

#: Runs in a process of its own, as a Celery client: prints one JSON value.
_CLIENT = """
import json, os, sys
from girder_worker.app import app
from girder_worker.docker.tasks import docker_run
from girder_worker.docker.transforms import VolumePath, BindMountVolume
image = sys.argv[1]
def outcome(result, seconds=60):
    try:
        return {"value": result.get(timeout=seconds)}
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}
"""


def _client(site: Site, code: str) -> Any:
    env = os.environ | {
        "GIRDER_WORKER_BROKER": site.stack["GIRDER_WORKER_BROKER"],
        "GIRDER_WORKER_BACKEND": site.stack["GIRDER_WORKER_BACKEND"],
    }
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT + code, site.image],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _girder_slurm(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line as the worker's user calls it."""
    names = ("GIRDER_WORKER_BROKER", "GIRDER_WORKER_BACKEND")
    return subprocess.run(
        site.stack.as_user([str(Path(sys.executable).with_name("girder-slurm")), *arguments]),
        env=site.stack.user_environment()
        | {name: site.stack[name] for name in names}
        | {"GIRDER_WORKER_SLURM_CONFIG": str(site.worker.config)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_get_returns_when_the_job_has_ended(site: Site) -> None:
    answer = _client(
        site,
        "r = docker_run.delay(image, pull_image=False, container_args=['--list_cli'])\n"
        "print(json.dumps(outcome(r)))",
    )
    assert answer == {"value": []}


def test_get_raises_with_the_sentence_of_the_verdict(site: Site) -> None:
    answer = _client(
        site,
        "r = docker_run.delay(image, pull_image=False, container_args=['NoSuchCli'])\n"
        "print(json.dumps(outcome(r)))",
    )
    assert answer["error"] == "RuntimeError"
    assert "exit code" in answer["text"]


def test_environment_entrypoint_and_volumes_are_honoured(site: Site) -> None:
    shared = site.stack.shared / "celery-callers"
    subprocess.run(site.stack.as_user(["mkdir", "-p", str(shared)]), check=True)
    _client(
        site,
        "r = docker_run.delay(image, pull_image=False, entrypoint='/bin/sh',"
        " container_args=['-c', 'echo \"$GREETING from $(pwd)\" > /data/seen'], working_dir='/tmp',"
        f" environment={{'GREETING': 'a \"b\" $c, d'}}, volumes={{{str(shared)!r}: {{'bind': '/data', 'mode': 'rw'}}}})\n"
        "print(json.dumps(outcome(r)))",
    )
    assert (shared / "seen").read_text() == 'a "b" $c, d from /tmp\n'


def test_a_chain_goes_on_and_a_link_fires(site: Site) -> None:
    shared = site.stack.shared / "celery-callers"
    subprocess.run(site.stack.as_user(["mkdir", "-p", str(shared)]), check=True)
    for name in ("first", "second", "link"):
        (shared / name).unlink(missing_ok=True)
    answer = _client(
        site,
        "from celery import chain\n"
        f"volumes = {{{str(shared)!r}: {{'bind': '/data', 'mode': 'rw'}}}}\n"
        "def step(name):\n"
        "    return docker_run.si(image, pull_image=False, entrypoint='/bin/sh', volumes=volumes,\n"
        "                         container_args=['-c', 'touch /data/' + name])\n"
        "first = step('first'); first.link(step('link'))\n"
        "print(json.dumps(outcome(chain(first, step('second')).apply_async(), 90)))",
    )
    assert answer == {"value": []}
    assert (shared / "first").stat().st_mtime_ns < (shared / "second").stat().st_mtime_ns
    assert (shared / "link").exists()


def test_an_errback_fires(site: Site) -> None:
    shared = site.stack.shared / "celery-callers"
    subprocess.run(site.stack.as_user(["mkdir", "-p", str(shared)]), check=True)
    (shared / "errback").unlink(missing_ok=True)
    _client(
        site,
        "import time\n"
        f"volumes = {{{str(shared)!r}: {{'bind': '/data', 'mode': 'rw'}}}}\n"
        "errback = docker_run.si(image, pull_image=False, entrypoint='/bin/sh', volumes=volumes,\n"
        "                        container_args=['-c', 'echo fired > /data/errback'])\n"
        "r = docker_run.apply_async((image,), dict(pull_image=False, container_args=['NoSuchCli']), link_error=errback)\n"
        "outcome(r)\n"
        f"path = {str(shared / 'errback')!r}\n"
        "deadline = time.time() + 60\n"
        "while not os.path.exists(path) and time.time() < deadline: time.sleep(0.2)\n"
        "print(json.dumps(os.path.exists(path)))",
    )
    assert (shared / "errback").read_text() == "fired\n"


def test_an_unknown_task_is_kept_and_does_not_stop_the_others(site: Site) -> None:
    _client(
        site,
        "r = app.send_task('large_image_tasks.tasks.create_tiff', kwargs={'x': 1}, task_id='unknown-1',\n"
        "                  headers={'girder_job_disable': True})\n"
        "r = docker_run.delay(image, pull_image=False, container_args=['--list_cli'])\n"
        "print(json.dumps(outcome(r)))",
    )
    kept = site.worker.root / "unhandled" / "unknown-1"
    assert json.loads((kept / "message.json").read_text())["task"] == "large_image_tasks.tasks.create_tiff"
    assert "large-image-tasks" in (kept / "reason.txt").read_text()


def test_a_message_that_celery_stumbles_over_is_kept_and_the_worker_goes_on(site: Site) -> None:
    answer = _client(
        site,
        "with app.connection_for_write() as connection, connection.channel() as channel:\n"
        "    from kombu import Producer\n"
        "    Producer(channel).publish([[], {}, {}], routing_key='celery', serializer='json',\n"
        "                              headers={'id': 'broken-1', 'task': ['not', 'a', 'name']})\n"
        "r = docker_run.delay(image, pull_image=False, container_args=['--list_cli'])\n"
        "print(json.dumps(outcome(r)))",
    )
    assert answer == {"value": []}
    assert "TypeError" in (site.worker.root / "unhandled" / "broken-1" / "reason.txt").read_text()
    assert site.tasks_in_rabbitmq() == 0


def test_a_revoked_task_raises_for_its_caller(site: Site) -> None:
    shared = site.stack.shared / "celery-callers"
    subprocess.run(site.stack.as_user(["mkdir", "-p", str(shared)]), check=True)
    (shared / "started").unlink(missing_ok=True)
    answer = _client(
        site,
        "import time\n"
        f"path = {str(shared / 'started')!r}\n"
        f"volumes = {{{str(shared)!r}: {{'bind': '/data', 'mode': 'rw'}}}}\n"
        "r = docker_run.delay(image, pull_image=False, entrypoint='/bin/sh', volumes=volumes,\n"
        "                     container_args=['-c', 'touch /data/started; sleep 100'])\n"
        "deadline = time.time() + 60\n"
        "while not os.path.exists(path) and time.time() < deadline: time.sleep(0.1)\n"
        "r.revoke()\n"
        "print(json.dumps(outcome(r)))",
    )
    assert answer["error"] == "TaskRevokedError"


def test_a_message_of_a_missing_package_fails_its_job_and_runs_after_requeue(site: Site) -> None:
    shared = site.stack.shared / "celery-callers"
    subprocess.run(site.stack.as_user(["mkdir", "-p", str(shared)]), check=True)
    (shared / "again").unlink(missing_ok=True)
    job, spec = site.girder.new_job("Missing package")
    headers = {"jobInfoSpec": spec, "girder_api_url": site.girder.api}
    task_id = f"missing-{job}"
    _client(
        site,
        "app.send_task('nosuch_package.tasks.run', kwargs=dict(image=image, pull_image=False, entrypoint='/bin/sh',"
        f" volumes={{{str(shared)!r}: {{'bind': '/data', 'mode': 'rw'}}}}, container_args=['-c', 'echo again > /data/again']),"
        f" task_id={task_id!r}, headers={headers!r})\n"
        "print(json.dumps(1))",
    )
    ended = site.girder.wait_for_end(job)
    assert ended["status"] == ERROR
    assert "`nosuch-package`" in "".join(ended["log"])
    # What installing the package would bring about: the name becomes one that the worker knows.
    kept = site.worker.root / "unhandled" / task_id / "message.json"
    kept.write_text(
        kept.read_text().replace("nosuch_package.tasks.run", "girder_worker.docker.tasks.docker_run")
    )
    done = _girder_slurm(site, "requeue", task_id)
    assert done.returncode == 0, done.stderr
    wait_until("it has run", (shared / "again").exists, seconds=60)
    wait_until("its record has ended", (site.worker.root / "ended" / task_id).exists, seconds=30)
    log = site.girder.log(job)
    assert "Sent again" in log
    assert "completed" in log
    assert not kept.exists()


def test_cancel_at_the_command_line_ends_the_job(site: Site, folder: str) -> None:
    job = site.run_toy(folder, sleep=100)
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=30)
    done = _girder_slurm(site, "cancel", job)
    assert done.returncode == 0, done.stderr
    ended = site.girder.wait_for_end(job)
    assert ended["status"] == CANCELED
    assert "girder-slurm" in "".join(ended["log"])
