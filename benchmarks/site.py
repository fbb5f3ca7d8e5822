"""The stack with a worker of the benchmark's own, and what can be seen of both from outside."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from celery import Celery
from pymongo import MongoClient

from tests.support.girder_site import FINAL, GirderSite, wait_until
from tests.support.images import build_and_push_image
from tests.support.stack import Stack
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: A CLI without inputs and outputs. Its last act is to say how long the machine has been up.
_ENTRY = """#!/bin/sh
case "$1" in --list_cli) cat list.json; exit 0 ;; esac
cli=$1
shift
case "$1" in --xml) cat "$cli.xml"; exit 0 ;; esac
[ "$1" = --code ] && code=$2
read up rest < /proc/uptime
echo "ran, last act at $up"
exit "${code:-0}"
"""
_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Benchmark</category><title>Nothing</title><description>Does nothing.</description>
  <version>1.0</version><license>Apache-2.0</license><contributor>Benchmarks</contributor>
  <parameters>
    <label>All</label><description>All</description>
    <integer><name>code</name><label>Code</label><description>Exit code</description>
      <longflag>code</longflag><default>0</default></integer>
  </parameters>
</executable>
"""
_FILES = {
    "opt/n/entry.sh": _ENTRY,
    "opt/n/list.json": '{"Nothing": {"type": "python"}}',
    "opt/n/Nothing.xml": _XML,
}
_LAST_ACT = re.compile(r"ran, last act at ([0-9.]+)")
DOCKER_RUN = "girder_worker.docker.tasks.docker_run"


def uptime() -> float:
    """Seconds since the machine started, as containers read it too (10 ms steps)."""
    return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])


@dataclass
class Bench:
    """A place of its own on the stack, for one run of the benchmarks."""

    stack: Stack
    girder: GirderSite
    root: Path
    workers: list[Worker] = field(default_factory=list)

    @classmethod
    @contextmanager
    def on_the_stack(cls) -> Iterator[Bench]:
        """Made for the block, and removed after it."""
        stack = Stack.read()
        root = stack.shared / f"benchmark-{uuid.uuid4().hex[:8]}"
        bench = cls(stack, GirderSite(stack).login(), root)
        subprocess.run(stack.as_user(["mkdir", "-m", "0755", str(root)]), check=True)
        try:
            yield bench
        finally:
            for worker in bench.workers:
                worker.stop()
            bench.cancel_all()
            shutil.rmtree(root, ignore_errors=True)

    # -- the worker

    def worker(self, name: str, *, sif: str = "sif", config: str = "", poll_seconds: float = 15.0) -> Worker:
        """A worker with a jobs root of its own; not started."""
        worker = Worker(
            self.stack, self.root / name, self.root / sif, extra_config=config, poll_seconds=poll_seconds
        )
        self.workers.append(worker)
        return worker

    def ingest(self, worker: Worker) -> tuple[str, str]:
        """Reference of a new image that is converted and known to Girder, and the id of its CLI."""
        image = build_and_push_image(
            self.stack["DEVSTACK_REGISTRY"],
            f"benchmarks/nothing:{uuid.uuid4().hex[:6]}",
            _FILES,
            entrypoint=["./entry.sh"],
            workdir="/opt/n",
        )
        assert worker.is_running
        self.girder.ingest(image)
        return image, self.girder.cli(image, "Nothing")

    # -- Slurm

    def slurm(self, *argv: str, as_root: bool = False, stdin: str | None = None) -> str:
        """What a Slurm command prints."""
        return subprocess.run(
            list(argv) if as_root else self.stack.as_user(list(argv)),
            env=self.stack.user_environment(),
            input=stdin,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    def cancel_all(self) -> None:
        """Cancels all jobs of the stack's user, and waits until they are gone."""
        self.slurm("scancel", f"--user={self.stack.user}")
        wait_until("no job is left", lambda: not self.slurm("squeue", "-h").strip(), seconds=180, every=0.5)

    @contextmanager
    def closed_partition(self) -> Iterator[None]:
        """Jobs wait for as long as the block lasts."""
        self.slurm("scontrol", "update", "partitionname=normal", "state=down", as_root=True)
        try:
            yield
        finally:
            self.slurm("scontrol", "update", "partitionname=normal", "state=up", as_root=True)

    def scheduler_calls(self) -> dict[str, int]:
        """How many calls of each type the controller has had from the stack's user; its own are left out."""
        text = self.slurm("sdiag", as_root=True)
        types = re.search(r"statistics by message type\n(.*?)\n\n", text, re.DOTALL)
        found = re.findall(r"^\s*([A-Z]\w+)\s+\(.*?\)\s+count:(\d+)", types[1] if types else "", re.MULTILINE)
        return {name: int(count) for name, count in found}

    # -- Girder's database, which costs Girder nothing to be looked at

    @cached_property
    def _jobs(self) -> Any:
        return MongoClient(self.stack["GIRDER_MONGO_URI"]).get_default_database().job

    def statuses(self, jobs: Sequence[str]) -> dict[str, int]:
        """The state of these Girder jobs."""
        found = self._jobs.find({"_id": {"$in": [ObjectId(job) for job in jobs]}}, {"status": 1})
        return {str(job["_id"]): int(job["status"]) for job in found}

    def logs(self, jobs: Sequence[str]) -> dict[str, str]:
        """The logs of these Girder jobs."""
        found = self._jobs.find({"_id": {"$in": [ObjectId(job) for job in jobs]}}, {"log": 1})
        return {str(job["_id"]): "".join(job.get("log") or []) for job in found}

    def wait_for_all(self, jobs: Sequence[str], *, seconds: float) -> float:
        """The time of day at which all of these had ended, by looking every 50 ms."""
        wait_until(
            "all Girder jobs have ended",
            lambda: all(status in FINAL for status in self.statuses(jobs).values()),
            seconds=seconds,
            every=0.05,
        )
        return time.time()

    def girder_calls(self) -> int:
        """How many REST calls Girder's access log has, of whomever: between two looks nobody else may use it."""
        log = Path(self.stack["DEVSTACK_DIR"]) / "log" / "girder.log"
        text = log.read_text(encoding="utf-8", errors="replace")
        return len(re.findall(r'"(?:GET|PUT|POST|DELETE) /api/v1/\S+ HTTP', text))

    # -- tasks

    def send(self, image: str, count: int) -> list[str]:
        """Task ids of so many messages that run this image for nobody: no Girder job belongs to them."""
        app = Celery("benchmark", broker=self.stack["GIRDER_WORKER_BROKER"], set_as_current=False)
        ids = [uuid.uuid4().hex for _ in range(count)]
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for task_id in ids:
                app.send_task(
                    DOCKER_RUN,
                    kwargs={"image": image, "container_args": ["Nothing"], "pull_image": False},
                    task_id=task_id,
                    queue="celery",
                    producer=producer,
                )
        return ids

    def run_cli(self, cli: str, *, code: int = 0) -> str:
        """The Girder job of one press of Run."""
        return self.girder.run(cli, code=code)


def last_act(log: str) -> list[float]:
    """When containers whose output is in this log did their last act, by `uptime`; one for each container that ran."""
    return [float(text) for text in _LAST_ACT.findall(log)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
