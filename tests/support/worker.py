"""The worker as an administrator runs it: a process of an unprivileged user, started, stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.girder_site import wait_until

if TYPE_CHECKING:
    from tests.support.stack import Stack

CONFIG = """\
[jobs]
root = {root}
[slurm]
poll_seconds = {poll_seconds}
[slurm.options]
mem = 150
[singularity]
sif_image_path = {sif}
plain_http_registries = {registry}
min_free_bytes = 50000000
"""


@dataclass
class Worker:
    """One worker with a jobs root of its own."""

    stack: Stack
    root: Path
    sif: Path
    extra_config: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    poll_seconds: float = 2.0
    #: Its `worker_id`, where several share a root.
    name: str = ""
    #: Stands before its command lines, and before those of `girder-slurm` with its settings.
    prefix: tuple[str, ...] = ()
    #: The `girder-slurm` that is started.
    program: Path = field(default_factory=lambda: Path(sys.executable).with_name("girder-slurm"))
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        """Its worker.local.cfg."""
        return self.root.with_name(f"{self.root.name}{self.name}.cfg")

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.root.with_name(f"{self.root.name}{self.name}.log")

    def start(self) -> Worker:
        """Starts it and waits until it takes tasks."""
        self.config.write_text(
            CONFIG.format(
                root=self.root,
                sif=self.sif,
                registry=self.stack["DEVSTACK_REGISTRY"],
                poll_seconds=self.poll_seconds,
            )
            + (f"[jobs]\nworker_id = {self.name}\n" if self.name else "")
            + self.extra_config,
            encoding="utf-8",
        )
        self.config.chmod(0o644)
        env = self.stack.user_environment() | {
            "GIRDER_WORKER_BROKER": self.stack["GIRDER_WORKER_BROKER"],
            "GIRDER_WORKER_BACKEND": self.stack["GIRDER_WORKER_BACKEND"],
            "GIRDER_WORKER_SLURM_CONFIG": str(self.config),
            **self.environment,
        }
        start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.stack.as_user([str(self.program), "worker"])],
                env=env,
                cwd="/",
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        wait_until(
            "the worker is ready",
            lambda: b" ready." in self.log.read_bytes()[start:],
            seconds=60,
            give_up=lambda: (
                "" if self.is_running else f"it ended: {self.log.read_text(errors='replace')[-3000:]}"
            ),
        )
        return self

    def restart(self, config: str = "", **environment: str) -> None:
        """Stops it and starts it with these lines in its configuration, and these variables besides those it has."""
        self.stop()
        self.extra_config, self.environment = config, self.environment | environment
        self.start()

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> float:
        """SIGTERM, as an administrator; returns the seconds it took."""
        before = time.monotonic()
        self._end(signal.SIGTERM)
        return time.monotonic() - before

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        self.process.wait(60)
        self.process = None

    def command(self, *arguments: str) -> str:
        """What `girder-slurm` answers with this worker's settings, to its user; it has to succeed."""
        done = self.attempt(*arguments)
        done.check_returncode()
        return done.stdout

    def attempt(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """How `girder-slurm` ends with this worker's settings, for its user, whatever its exit code."""
        program = Path(sys.executable).with_name("girder-slurm")
        env = self.stack.user_environment() | {"GIRDER_WORKER_SLURM_CONFIG": str(self.config)}
        return subprocess.run(
            [*self.prefix, *self.stack.as_user([str(program), *arguments])],
            env=env | self.environment | environment, cwd="/", check=False, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def threads(self) -> int:
        """How many threads the worker's process has."""
        assert self.process is not None
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def cpu_seconds(self) -> float:
        """Processor time of the worker's process and of all that it has started and that has ended."""
        assert self.process is not None
        return sum(psutil.Process(self.process.pid).cpu_times()[:4])

    def entries(self) -> dict[str, list[dict[str, Any]]]:
        """What the records say: task id → entries, ended jobs included."""
        found = {}
        for path in [*self.root.glob("record/[!.]*/state.jsonl"), *self.root.glob("ended/*/state.jsonl")]:
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:  # it ended between the listing and here
                try:
                    lines = (
                        (self.root / "ended" / path.parent.name / path.name).read_text("utf-8").splitlines()
                    )
                except FileNotFoundError:  # and is no longer kept
                    continue
            found[path.parent.name] = [json.loads(line) for line in lines if line.endswith("}")]
        return found

    def entries_of(self, girder_job: str) -> list[dict[str, Any]]:
        """The entries of the job with this Girder id."""
        for entries in self.entries().values():
            for entry in entries:
                if str((entry.get("girder") or {}).get("url", "")).endswith(girder_job):
                    return entries
        return []

    def slurm_job_id(self, girder_job: str) -> str:
        """The Slurm job of a Girder job; empty while there is none."""
        ids = [
            entry["slurm_job_id"] for entry in self.entries_of(girder_job) if entry["event"] == "submitted"
        ]
        return str(ids[-1]) if ids else ""
