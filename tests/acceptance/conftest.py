"""The whole product on the real stack: stock Girder, RabbitMQ, Slurm, Apptainer, a registry and our worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kombu import Connection

from tests.support.girder_site import GirderSite, wait_until
from tests.support.slow_link import SlowLink
from tests.support.stack import Stack
from tests.support.toy_cli import push_toy_cli
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Site:
    """Everything a test of the whole needs."""

    stack: Stack
    girder: GirderSite
    worker: Worker
    image: str
    toy: str
    sum: str

    def slurm(self, *argv: str, as_root: bool = False, check: bool = True) -> str:
        """What a Slurm command prints."""
        command = list(argv) if as_root else self.stack.as_user(list(argv))
        env = self.stack.user_environment()
        return subprocess.run(
            command, env=env, check=check, capture_output=True, text=True, timeout=60
        ).stdout

    def slurm_state(self, slurm_job_id: str) -> str:
        """The state of a Slurm job; empty when Slurm does not know it."""
        out = self.slurm("squeue", "-h", "-t", "all", "-o", "%i %T")
        return next((line.split()[1] for line in out.splitlines() if line.split()[0] == slurm_job_id), "")

    def slurm_detail(self, job: str) -> str:
        """What `scontrol show job` says of the Slurm job of a Girder job, in one line."""
        return self.slurm("scontrol", "--oneliner", "show", "job", self.worker.slurm_job_id(job))

    @contextmanager
    def slurm_conf(self, *lines: str) -> Iterator[None]:
        """More lines in slurm.conf for as long as the block lasts; drained nodes are back after it."""
        site_conf = Path(self.stack["SLURM_CONF"]).with_name("site.conf")
        before = site_conf.read_text(encoding="utf-8")
        try:
            site_conf.write_text(before + "".join(f"{line}\n" for line in lines), encoding="utf-8")
            self.slurm("scontrol", "reconfigure", as_root=True)
            yield
        finally:
            site_conf.write_text(before, encoding="utf-8")
            self.slurm("scontrol", "reconfigure", as_root=True)
            self.resume_all()

    @contextmanager
    def partition_down(self, name: str) -> Iterator[None]:
        """Jobs of this partition wait for as long as the block lasts."""
        self.slurm("scontrol", "update", f"partitionname={name}", "state=down", as_root=True)
        try:
            yield
        finally:
            self.slurm("scontrol", "update", f"partitionname={name}", "state=up", as_root=True)

    def take_id(self) -> int:
        """The id that Slurm gives to a job that never starts."""
        taken = self.slurm("sbatch", "--parsable", "--hold", "--output=/dev/null", "--mem=1", "--wrap=true")
        self.slurm("scancel", taken.strip())
        return int(taken)

    def use_up_ids(self, highest: int) -> None:
        """Takes the ids that a crashed controller gives out again: nodes refuse them for a while, which costs tries."""
        while self.take_id() < highest:
            pass

    def resume_all(self) -> None:
        """Brings all nodes back that are down or drained."""
        for node in self.stack["DEVSTACK_NODES"].split():
            self.resume(node)

    def resume(self, node: str) -> None:
        """Brings a node back that is down or drained; one that is neither has come back by itself."""
        self.slurm("scontrol", "update", f"nodename={node}", "state=resume", as_root=True, check=False)
        wait_until(
            "the node is back",
            lambda: (
                not {"down", "drain", "drng"} & set(self.slurm("sinfo", "-h", "-n", node, "-o", "%T").split())
            ),
            seconds=60,
        )

    def tasks_in_rabbitmq(self) -> int:
        """Messages that wait in the queue and that no worker has taken."""
        with Connection(self.stack["GIRDER_WORKER_BROKER"]) as connection:
            return int(connection.default_channel.queue_declare("celery", passive=True).message_count)

    def run_toy(self, folder: str, **params: object) -> str:
        """Starts the toy CLI on a small file and returns the job."""
        file = self.girder.upload(folder, f"input-{uuid.uuid4().hex[:6]}.txt", b"hello\n")
        return self.girder.run(
            self.toy, inputFile=file, outputFile="out.txt", outputFile_folder=folder, **params
        )


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The running stack."""
    try:
        return Stack.read()
    except FileNotFoundError:
        if "girder" in os.environ.get("GIRDER_SLURM_REQUIRE", ""):
            pytest.fail("The stack is not up: devstack/devstack up")
        pytest.skip("The stack is not up: devstack/devstack up")


@pytest.fixture(scope="session")
def shared_site(stack: Stack) -> Iterator[Site]:
    """A site with one worker and the toy image ingested, for the whole session."""
    girder = GirderSite(stack).login()
    root = stack.shared / f"acceptance-{uuid.uuid4().hex[:8]}"
    worker = Worker(stack, root, root.with_name(f"{root.name}-sif"))
    worker.start()
    try:
        image = push_toy_cli(stack["DEVSTACK_REGISTRY"], f"tests/toy:{uuid.uuid4().hex[:6]}")
        girder.ingest(image)
        yield Site(stack, girder, worker, image, girder.cli(image, "Toy"), girder.cli(image, "Sum"))
    finally:
        worker.stop()
        for path in stack.shared.glob(f"{root.name}*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


@pytest.fixture
def site(shared_site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The site with its worker running; what a test changed about the worker is put back."""
    worker = shared_site.worker
    # A test before this one may have left some: a crashed controller drains nodes a good while later.
    if shared_site.slurm("sinfo", "--noheader", "--states=down,drain", "--format=%N").strip():
        shared_site.resume_all()
    if not worker.is_running:
        worker.start()
    yield shared_site
    if worker.extra_config or worker.environment:
        worker.stop()
        worker.extra_config, worker.environment = "", {}
    if request.session.shouldstop:
        worker.stop()


@pytest.fixture
def slow(site: Site) -> Iterator[SlowLink]:
    """A line to Girder that can be slow or cut, which the worker uses."""
    with SlowLink(site.stack["GIRDER_URL"]) as link:
        site.worker.stop()
        site.worker.environment = {"GIRDER_WORKER_API_URL": link.url("/api/v1")}
        site.worker.start()
        yield link
        link.bytes_per_second = 0.0


@pytest.fixture
def folder(site: Site) -> str:
    """A new Girder folder."""
    return site.girder.new_folder()
