"""The faults of the soak: each is done to the running site, lasts for a moment, and is over when its function returns."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import SecretStr

from girder_worker_slurm.cli.kept_messages import body_bytes
from girder_worker_slurm.doctor.broker_connection import broker_connection
from girder_worker_slurm.settings import CelerySection
from tests.support.unreliable_commands import WAYS
from tests.support.worker import Worker

if TYPE_CHECKING:
    import random
    import threading
    from collections.abc import Callable

    from tests.acceptance.conftest import Site
    from tests.support.slow_link import SlowLink
    from tests.support.soak.account import SoakJob
    from tests.support.unreliable_commands import UnreliableCommands


@dataclass
class Faults:
    """What can be done to a site. `jobs` are those that were started; those under way are looked up in Slurm."""

    site: Site
    link: SlowLink
    commands: UnreliableCommands
    jobs: list[SoakJob]
    random: random.Random
    #: Held while Girder and its services restart: nobody presses Run meanwhile.
    server: threading.Lock
    #: How long the lasting ones last, in seconds.
    shortest: float = 2.0
    longest: float = 12.0
    done: list[str] = field(default_factory=list)

    def all(self) -> dict[str, Callable[[], None]]:
        """Every fault by its name."""
        services = ("rabbitmq", "girder", "mongodb", "redis")
        misbehaviours = ((command, how) for command, ways in WAYS.items() for how in ways)
        return {
            "worker killed": self._worker_killed,
            "worker stopped and started": self._worker_restarted,
            "worker away": self._worker_away,
            "a second worker, killed": self._second_worker,
            "message delivered again": self._message_again,
            "slurmctld hangs": self._slurmctld_hangs,
            "slurmctld killed": self._slurmctld_killed,
            "node lost": self._node_lost,
            "node drained": self._node_drained,
            "job requeued by an administrator": self._requeued,
            "job cancelled by an administrator": self._cancelled_in_slurm,
            "job suspended and resumed": self._suspended,
            "job script killed": self._script_killed,
            "line to Girder cut": self._line_cut,
            "line to Girder slow": self._line_slow,
            **{f"{name} restarted": lambda name=name: self._service_restarted(name) for name in services},
            **{
                f"{command}: {how}": lambda command=command, how=how: self._misbehaves(command, how)
                for command, how in misbehaviours
            },
        }

    def _last(self) -> None:
        # A fault lasts; there is no condition to wait for.
        time.sleep(self.random.uniform(self.shortest, self.longest))

    # -- the worker

    def _worker_killed(self) -> None:
        self.site.worker.kill()
        self.site.worker.start()

    def _worker_restarted(self) -> None:
        self.site.worker.stop()
        self.site.worker.start()

    def _worker_away(self) -> None:
        self.site.worker.kill()
        self._last()
        self.site.worker.start()

    def _second_worker(self) -> None:
        first = self.site.worker
        second = Worker(
            self.site.stack,
            first.root,
            first.sif,
            extra_config=first.extra_config,
            environment=first.environment,
            name=f"second{len(self.done)}",
        )
        second.start()
        self._last()
        second.kill()

    def _message_again(self) -> None:
        # Of a job that ended long ago, or of one under way: neither may run again.
        paths = sorted(self.site.worker.root.glob("[re]*/[!.]*/message.json"))
        try:
            stored = json.loads(self.random.choice(paths).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        celery = CelerySection(broker=SecretStr(self.site.stack["GIRDER_WORKER_BROKER"]))
        with broker_connection(celery, timeout_seconds=30) as broker:
            broker.publish("celery", body_bytes(stored), stored)

    # -- Slurm

    def _slurmctld(self) -> psutil.Process:
        conf = self.site.stack["SLURM_CONF"]
        return next(
            process
            for process in psutil.process_iter(["cmdline"])
            if process.info["cmdline"]
            and Path(process.info["cmdline"][0]).name == "slurmctld"
            and conf in process.info["cmdline"]
        )

    def _slurmctld_hangs(self) -> None:
        process = self._slurmctld()
        process.send_signal(signal.SIGSTOP)
        try:
            self._last()
        finally:
            process.send_signal(signal.SIGCONT)

    def _slurmctld_killed(self) -> None:
        highest = self.site.take_id()
        self.site.stack.service("stop", "--kill", "slurmctld")
        try:
            self._last()
        finally:
            self.site.stack.service("start", "slurmctld")
            # By the id that another job has now the worker knows that a job is lost; some came after `highest`.
            self.site.use_up_ids(highest + 10)
            self.site.resume_all()

    def _node(self) -> tuple[str, str]:
        """A node, and the service that is its slurmd."""
        nodes = self.site.stack["DEVSTACK_NODES"].split()
        number = self.random.randrange(len(nodes))
        return nodes[number], f"slurmd-gs{number + 1}"

    def _node_lost(self) -> None:
        node, service = self._node()
        self.site.stack.service("stop", "--kill", service)
        try:
            self._scontrol("update", f"nodename={node}", "state=down", "reason=soak")
            self._last()
        finally:
            self.site.stack.service("start", service)
            self.site.resume(node)

    def _node_drained(self) -> None:
        node, _ = self._node()
        self._scontrol("update", f"nodename={node}", "state=drain", "reason=soak")
        try:
            self._last()
        finally:
            self.site.resume(node)

    def _scontrol(self, *words: str) -> None:
        self.site.slurm("scontrol", *words, as_root=True, check=False)

    def _running(self) -> tuple[str, SoakJob] | None:
        """A job that runs now, by its Slurm id."""
        ids = self.site.slurm("squeue", "-h", "-t", "R", "-o", "%i").split()
        by_id = {job.girder_id: job for job in self.jobs}
        for entries in self.site.worker.entries().values() if ids else ():
            slurm = [entry["slurm_job_id"] for entry in entries if entry["event"] == "submitted"][-1:]
            girder = next((entry["girder"]["url"] for entry in entries if entry.get("girder")), "")
            job = by_id.get(girder.rpartition("/")[2])
            if job is not None and slurm and slurm[0] in ids:
                return slurm[0], job
        return None

    def _requeued(self) -> None:
        if found := self._running():
            self._scontrol("update", f"jobid={found[0]}", "requeue=1")
            self._scontrol("requeue", found[0])

    def _cancelled_in_slurm(self) -> None:
        if found := self._running():
            found[1].ended_by.append("scancel")
            self.site.slurm("scancel", found[0], as_root=True, check=False)

    def _suspended(self) -> None:
        if found := self._running():
            self._scontrol("suspend", found[0])
            self._last()
            self._scontrol("resume", found[0])

    def _script_killed(self) -> None:
        found = self._running()
        if not found:
            return
        ending = f"/job{int(found[0]):05d}/slurm_script"
        for process in psutil.process_iter(["cmdline"]):
            if any(word.endswith(ending) for word in process.info["cmdline"] or ()):
                found[1].ended_by.append("script killed")
                os.kill(process.pid, signal.SIGKILL)
                return

    def _misbehaves(self, command: str, how: str) -> None:
        with self.commands.misbehave(command, how):
            self._last()

    # -- the server's side

    def _line_cut(self) -> None:
        self.link.is_cut = True
        self.link.cut()
        try:
            self._last()
        finally:
            self.link.is_cut = False

    def _line_slow(self) -> None:
        self.link.bytes_per_second = 20_000.0
        try:
            self._last()
        finally:
            self.link.bytes_per_second = 0.0

    def _service_restarted(self, name: str) -> None:
        with self.server:
            self.site.stack.service("restart", name)
