"""The worker as the documentation of compose has it started: worker/run.sh beside Slurm, outside Docker."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.compose.server import REPOSITORY
from tests.support.girder_site import wait_until

if TYPE_CHECKING:
    from tests.compose.server import ComposeServer
    from tests.support.stack import Stack

_SITE = """
[jobs]
root = {root}
[slurm]
poll_seconds = 2
[slurm.options]
mem = 150
[singularity]
plain_http_registries = {registry}
min_free_bytes = 50000000
"""


@dataclass
class OutsideWorker:
    """One worker, whose broker, password and Girder are what `docker/make-env.sh --worker` wrote."""

    server: ComposeServer
    cluster: Stack
    directory: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.directory = self.cluster.shared / f"compose-{uuid.uuid4().hex[:8]}"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.directory.with_suffix(".log")

    def start(self) -> OutsideWorker:
        """Starts it with the server's password of now and waits until it takes tasks."""
        written = self.server.checkout / f"worker-{uuid.uuid4().hex[:6]}.cfg"
        self.server.run("docker/make-env.sh", "--worker", written.name)
        assert written.stat().st_mode & 0o777 == 0o600
        config = self.directory.with_suffix(".cfg")
        site = _SITE.format(root=self.directory, registry=self.cluster["DEVSTACK_REGISTRY"])
        config.write_text(written.read_text(encoding="utf-8") + site, encoding="utf-8")
        shutil.chown(config, self.cluster.user)
        config.chmod(0o600)
        environment = self.cluster.user_environment() | {
            "GIRDER_WORKER_SLURM_VENV": str(Path(sys.executable).parents[1]),
            "GIRDER_WORKER_SLURM_CONFIG": str(config),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.cluster.as_user([str(REPOSITORY / "worker" / "run.sh")]),
                env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        wait_until(
            "the worker is ready",
            lambda: b" ready." in self.log.read_bytes(),
            seconds=60,
            give_up=lambda: "" if self._runs() else self.log.read_text(errors="replace")[-3000:],
        )
        return self

    def stop(self) -> None:
        """SIGTERM; its directory stays for the next start."""
        if self.process is None:
            return
        if self._runs():
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)
        self.process = None

    def remove(self) -> None:
        """Stops it and removes what it left."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        for suffix in (".log", ".cfg"):
            self.directory.with_suffix(suffix).unlink(missing_ok=True)

    def _runs(self) -> bool:
        return self.process is not None and self.process.poll() is None
