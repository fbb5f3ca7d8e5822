"""The doctor, `cancel --direct` and `requeue` on the real stack. Nothing here takes from the stack's own queue."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kombu import Connection, Queue

from girder_worker_slurm.celery_worker.message import REQUEUED_HEADER, body_bytes, store_message
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slurm, pytest.mark.apptainer, pytest.mark.girder]

COMMAND = str(Path(sys.executable).with_name("girder-slurm"))


@dataclass
class Site:
    """A worker's configuration of its own on the real stack."""

    stack: Stack
    path: Path
    queue: str
    lines: dict[str, list[str]] = field(default_factory=dict)

    @property
    def jobs_root(self) -> Path:
        return self.path / "jobs"

    def environment(self) -> dict[str, str]:
        sections = {
            "celery": [f"broker = {self.stack['GIRDER_WORKER_BROKER']}", f"queues = {self.queue}"],
            "girder": [f"api_url = {self.stack['GIRDER_API_URL']}"],
            "jobs": [f"root = {self.jobs_root}"],
            "slurm.options": ["mem = 1G"],
        }
        for section, lines in self.lines.items():
            sections[section] = [*sections.get(section, []), *lines]
        file = self.path / "worker.local.cfg"
        file.write_text(
            "".join(f"[{name}]\n" + "\n".join(lines) + "\n\n" for name, lines in sections.items())
        )
        file.chmod(0o600)
        return {**self.stack.user_environment(), "GIRDER_WORKER_SLURM_CONFIG": str(file)}

    def run(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments], env=self.environment(), capture_output=True, text=True, timeout=timeout
        )

    def doctor(self, *arguments: str, code: int = 0) -> dict[str, list[dict[str, str]]]:
        """The findings by their check."""
        result = self.run("doctor", "--json", *arguments)
        assert result.returncode == code, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        findings: dict[str, list[dict[str, str]]] = {}
        for finding in json.loads(result.stdout):
            findings.setdefault(finding["check"], []).append(finding)
        return findings

    def queued(self) -> list[str]:
        answer = subprocess.run(
            ["squeue", "--noheader", "--format=%j|%T"],
            env=self.stack.user_environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return answer.stdout.splitlines()


def bad(findings: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {
        name: finding["level"]
        for name, found in findings.items()
        for finding in found
        if finding["level"] != "ok"
    }


@pytest.fixture
def site() -> Iterator[Site]:
    stack = Stack.read()
    path = stack.shared / f"doctor-test-{uuid.uuid4().hex[:8]}"
    path.mkdir(mode=0o700)
    queue = f"doctor-test-{uuid.uuid4().hex[:8]}"
    with Connection(stack["GIRDER_WORKER_BROKER"]) as connection, connection.channel() as channel:
        Queue(queue, channel=channel).queue_declare()
        yield Site(stack, path, queue)
        Queue(queue, channel=channel).delete()
    shutil.rmtree(path)


def test_a_good_site_is_found_good_and_left_as_it_was(site):
    found = site.doctor()

    assert bad(found) == {}
    for check in (
        "settings",
        "broker",
        f"queue {site.queue}",
        "Girder",
        "Slurm controller",
        "partition",
        "container",
        "probe job",
        "jobs root on the node",
        "SIF directory on the node",
        "events of the node",
        "Apptainer on the node",
        "container on the node",
        "TMPDIR on the node",
    ):
        assert found[check], check
    assert [entry.name for entry in site.path.iterdir()] == ["worker.local.cfg"]


def test_logs_and_sifs_elsewhere_are_looked_at_from_the_node(site):
    site.lines = {
        "jobs": [f"logs_dir = {site.path / 'logs'}"],
        "singularity": [f"sif_image_path = {site.path / 'sifs'}"],
        "slurm": ["direct_paths = /nowhere/at all"],
    }

    found = site.doctor()

    assert bad(found) == {"direct paths on the node": "warn"}
    assert found["logs directory on the node"][0]["level"] == "ok"
    assert found["SIF directory on the node"][0]["level"] == "ok"


def test_gpus_are_asked_of_slurm_and_an_overlay_is_tried_on_the_node(site):
    site.lines = {"singularity.images": ["team/* = writable=overlay:100"]}
    found = site.doctor()
    assert bad(found) == {}
    assert found["GPUs"][0]["found"] == "Slurm would take a job that wants one."
    assert found["overlay on the node"][0]["level"] == "ok"
    site.lines = {"slurm.gpu_options": ["gres = gpu:nonsense:{gpus}"]}
    found = site.doctor("--no-probe", code=1)
    assert bad(found) == {"GPUs": "fail"}
    assert "not available" in found["GPUs"][0]["found"]
    site.lines = {"slurm.gpu_options": ["partition = nonsense"]}
    assert "invalid partition" in site.doctor("--no-probe", code=1)["GPUs"][0]["found"].lower()


@pytest.mark.parametrize("option", ["memm = 8G", "mem = 800G", "time = 4 hours"])
def test_options_that_slurm_refuses_are_not_blamed_on_gpus(site, option):
    site.lines = {"slurm.options": [option]}
    found = site.doctor("--no-probe", code=1)
    assert bad(found) == {"sbatch options": "fail", "GPUs": "skip"}
    assert option.replace(" = ", "=") in found["sbatch options"][0]["found"]


def test_it_does_not_matter_where_the_doctor_is_called(site, tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.chdir(closed)
    closed.chmod(0)
    try:
        found = site.doctor("--no-probe")
    finally:
        closed.chmod(0o700)
    assert bad(found) == {}


def test_no_password_is_ever_printed(site):
    password = site.stack["GIRDER_WORKER_BROKER"].split("@")[0].rsplit(":", 1)[1]
    right = site.run("doctor", "--no-probe")
    site.lines = {
        "celery": [f"broker = {site.stack['GIRDER_WORKER_BROKER'].replace(password, password + 'x')}"]
    }
    wrong = site.run("doctor", "--no-probe")

    assert (right.returncode, wrong.returncode) == (0, 1)
    assert "FAIL  broker" in wrong.stdout
    assert "user, password" in wrong.stdout
    assert password not in right.stdout + right.stderr + wrong.stdout + wrong.stderr


def test_a_partition_that_does_not_exist_fails_before_and_in_the_probe(site):
    site.lines = {"slurm": ["partition = nonsense"]}

    found = site.doctor(code=1)

    assert bad(found) == {
        "partition": "fail",
        "memory of the nodes": "skip",
        "sbatch options": "skip",
        "GPUs": "skip",
        "probe job": "fail",
    }
    assert "normal" in found["partition"][0]["remedy"]
    assert "invalid partition" in found["probe job"][0]["found"]


def test_another_consumer_of_the_queue_is_a_warning(site):
    with (
        Connection(site.stack["GIRDER_WORKER_BROKER"]) as connection,
        connection.Consumer(Queue(site.queue, no_declare=True), callbacks=[lambda *_: None]),
    ):
        found = site.doctor("--no-probe")

    assert bad(found) == {f"queue {site.queue}": "warn"}


def test_a_probe_that_does_not_start_is_cancelled_and_cleaned_up(site):
    site.lines = {"slurm.options": ["begin = now+1hour"]}

    found = site.doctor("--timeout", "4")

    assert bad(found) == {"probe job": "warn"}
    assert "PENDING (BeginTime)" in found["probe job"][0]["found"]
    assert [entry.name for entry in site.path.iterdir()] == ["worker.local.cfg"]
    assert not [line for line in site.queued() if line.startswith("gw-doctor-") and "PENDING" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_probe_is_cancelled_and_cleaned_up(site, number):
    site.lines = {"slurm.options": ["begin = now+1hour"]}
    process = subprocess.Popen([COMMAND, "doctor"], env=site.environment(), stdout=subprocess.PIPE, text=True)
    try:
        name = wait_for(
            lambda: next((site.jobs_root / "tmp").glob("doctor-*"), None), "the probe's directory"
        ).name
        wait_for(lambda: any(name in line for line in site.queued()), "the probe job")
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 1
    assert [entry.name for entry in site.path.iterdir()] == ["worker.local.cfg"]
    assert not [line for line in site.queued() if name in line and "PENDING" in line]


def test_cancel_direct_ends_a_real_slurm_job_and_leaves_the_wish(site):
    root = JobsRoot(site.jobs_root, "w")
    root.prepare()
    name = f"gw-doctor-test-{uuid.uuid4().hex[:8]}"
    slurm_job_id = subprocess.run(
        ["sbatch", "--parsable", "--output=/dev/null", f"--job-name={name}", "--wrap", "sleep 300"],
        env=site.stack.user_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd="/",
    ).stdout.strip()
    record = Record.create(root.records, {"task_id": "task-1", "task": "x"}, worker_id="w", at=time.time())
    record.append("attempt", number=1, token=name, nonce="n", log_path="")
    record.append("submitted", slurm_job_id=slurm_job_id, at=time.time())

    result = site.run("cancel", "--direct", slurm_job_id)

    assert result.returncode == 0, result.stderr
    assert f"Slurm job {slurm_job_id} is cancelled" in result.stdout
    assert (record.path / "cancel-requested").exists()
    wait_for(
        lambda: not [line for line in site.queued() if line.startswith(name) and "RUNNING" in line], "the end"
    )


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_message_goes_back_through_rabbitmq_as_it_came(site, compression):
    root = JobsRoot(site.jobs_root, "w")
    root.prepare()
    task_id = str(uuid.uuid4())
    with Connection(site.stack["GIRDER_WORKER_BROKER"]) as connection, connection.channel() as channel:
        queue = Queue(site.queue, channel=channel)
        connection.Producer(channel).publish(
            [[1], {"text": "ü"}, {}],
            routing_key=site.queue,
            headers={
                "id": task_id,
                "task": "nobody.knows",
                "jobInfoSpec": {"url": "http://x", "headers": {"a": "b"}},
            },
            correlation_id=task_id,
            reply_to="answers",
            priority=3,
            compression=compression,
        )
        first = wait_for(queue.get, "the message")
        root.keep_unhandled(store_message(first), "The task nobody.knows is not installed.")
        first.ack()

        result = site.run("requeue", task_id)

        assert result.returncode == 0, result.stderr
        second = wait_for(queue.get, "the message again")
        second.ack()
    assert body_bytes(store_message(second)) == body_bytes(store_message(first))
    assert second.payload == first.payload
    assert second.headers.pop(REQUEUED_HEADER) is True
    assert (second.headers, second.content_type, second.content_encoding) == (
        first.headers,
        first.content_type,
        first.content_encoding,
    )
    for name in ("correlation_id", "reply_to", "priority", "delivery_mode"):
        assert second.properties[name] == first.properties[name]
    assert json.loads(site.run("unhandled", "--json").stdout) == []


def wait_for(look, what: str, seconds: float = 30):
    """What `look` gives as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found = look()
        except FileNotFoundError:
            found = None
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {seconds} s (as user {os.geteuid()})")
