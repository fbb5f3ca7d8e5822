"""Short jobs for some minutes, and a fault every few seconds: at the end each job is accounted for.

`GIRDER_SLURM_SOAK_MINUTES=60` makes it a long one, with a fault every 20 to 60 seconds; `GIRDER_SLURM_SOAK_SEED` another one.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import FINAL, GirderSite, wait_until
from tests.support.slow_link import SlowLink
from tests.support.soak.account import Seen, SoakJob, complaints, output_complaints
from tests.support.soak.faults import Faults
from tests.support.unreliable_commands import UnreliableCommands

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

logger = logging.getLogger(__name__)

MINUTES = float(os.environ.get("GIRDER_SLURM_SOAK_MINUTES", "5"))
SEED = int(os.environ.get("GIRDER_SLURM_SOAK_SEED", "20261126"))
IS_LONG = MINUTES >= 20
#: Between two faults, in seconds.
PAUSE = (20.0, 60.0) if IS_LONG else (1.0, 5.0)
JOBS_PER_SECOND = 0.6
#: What is under way at most: a slow machine gets fewer jobs, not a queue that never ends.
UNDER_WAY = 40
CONFIG = """
[slurm]
infrastructure_retries = 50
[jobs]
max_submitted = 30
"""

pytestmark = [pytest.mark.girder, pytest.mark.timeout(MINUTES * 60 + 900)]


@dataclass
class Load:
    """Somebody who presses Run, and sometimes Cancel."""

    girder: GirderSite
    toy: str
    file: str
    folder: str
    random: random.Random
    server: threading.Lock
    jobs: list[SoakJob] = field(default_factory=list)
    to_cancel: list[tuple[float, SoakJob]] = field(default_factory=list)

    def run_until(self, deadline: float) -> None:
        """Starts jobs until then."""
        while time.monotonic() < deadline:
            before = time.monotonic()
            with self.server:
                self._cancel_those_due()
                if self.under_way() < UNDER_WAY:
                    self._start_one()
            # The rate is part of what is tested; what a request took counts.
            time.sleep(max(0.0, 1 / JOBS_PER_SECOND - (time.monotonic() - before)))
        with self.server:
            self._cancel_those_due(all_of_them=True)

    def under_way(self) -> int:
        """How many jobs of these have not ended."""
        statuses = json.dumps([0, 1, 2, 820, 821, 822, 823, 824])
        active = {
            job["_id"] for job in self.girder.call("GET", "job", params={"statuses": statuses, "limit": 0})
        }
        return len(active & {job.girder_id for job in self.jobs})

    def _start_one(self) -> None:
        number = len(self.jobs)
        kind = self.random.choice(("good", "good", "good", "fails", "cancelled"))
        output = f"out-{number}.txt"
        girder_id = self.girder.run(
            self.toy,
            inputFile=self.file,
            outputFile=output,
            outputFile_folder=self.folder,
            sleep=200 if kind == "cancelled" else self.random.randint(0, 12),
            code=3 if kind == "fails" else 0,
        )
        job = SoakJob(girder_id, output, code=3 if kind == "fails" else 0)
        self.jobs.append(job)
        if kind == "cancelled":
            job.is_cancelled = True
            self.to_cancel.append((time.monotonic() + self.random.uniform(0, 15), job))

    def _cancel_those_due(self, *, all_of_them: bool = False) -> None:
        now = time.monotonic()
        for entry in list(self.to_cancel):
            if all_of_them or entry[0] <= now:
                self.girder.cancel(entry[1].girder_id)
                self.to_cancel.remove(entry)


def _disturb(faults: Faults, stop: threading.Event) -> None:
    """Each fault once in any order, and again, until told to stop."""
    while not stop.is_set():
        names = sorted(faults.all())
        faults.random.shuffle(names)
        for name in names:
            if stop.wait(faults.random.uniform(*PAUSE)):
                return
            logger.info("fault: %s", name)
            faults.done.append(name)
            faults.all()[name]()


def _seen(site: Site, job: SoakJob, records: dict[str, list[dict[str, str]]]) -> Seen:
    ended = site.girder.job(job.girder_id)
    entries = records.get(job.girder_id, [])
    return Seen(
        status=ended["status"],
        log="".join(ended["log"] or []),
        started=[entry.get("node", "") for entry in entries if entry["event"] == "started"],
        attempts=len([entry for entry in entries if entry["event"] == "attempt"]),
    )


def _records(site: Site) -> dict[str, list[dict[str, str]]]:
    found = {}
    for entries in site.worker.entries().values():
        url = next((entry["girder"]["url"] for entry in entries if entry.get("girder")), "")
        found[url.rpartition("/")[2]] = entries
    return found


def test_every_job_is_accounted_for_after_faults_of_all_kinds(site: Site, folder: str) -> None:
    chance = random.Random(SEED)  # noqa: S311 - which fault comes next is no secret
    server, stop = threading.Lock(), threading.Event()
    commands = UnreliableCommands(
        site.stack, site.worker.root.with_name(f"{site.worker.root.name}-unreliable")
    )
    file = site.girder.upload(folder, "input.txt", b"hello\n")
    outputs = site.girder.new_folder()
    unhandled = site.worker.root / "unhandled"
    kept_before = set(unhandled.iterdir())
    load = Load(site.girder, site.toy, file, outputs, chance, server)
    with SlowLink(site.stack["GIRDER_URL"]) as link, ThreadPoolExecutor(1) as pool:
        site.worker.stop()
        site.worker.extra_config = CONFIG
        site.worker.environment = {"GIRDER_WORKER_API_URL": link.url("/api/v1"), "PATH": commands.path}
        site.worker.start()
        faults = Faults(site, link, commands, load.jobs, random.Random(SEED + 1), server)  # noqa: S311
        disturbing = pool.submit(_disturb, faults, stop)
        try:
            load.run_until(time.monotonic() + MINUTES * 60)
        finally:
            stop.set()
            disturbing.result()  # a fault that could not be done, or undone, explains what came of it
        wait_until("all jobs have ended", lambda: not load.under_way(), seconds=400, every=2.0)
        wait_until(
            "no record is left",
            lambda: not list(site.worker.root.glob("record/[!.]*")),
            seconds=120,
            every=1.0,
        )
    records = _records(site)
    seen = {job.girder_id: _seen(site, job, records) for job in load.jobs}
    wrong = {
        job.output: (found, seen[job.girder_id].log[-2000:])
        for job in load.jobs
        if (found := complaints(job, seen[job.girder_id]))
    }
    there = [
        item["name"] for item in site.girder.call("GET", "item", params={"folderId": outputs, "limit": 0})
    ]
    statuses = [(job, seen[job.girder_id].status) for job in load.jobs]
    logger.info(
        "%d jobs, %d faults: %s",
        len(load.jobs),
        len(faults.done),
        {s: [x for _, x in statuses].count(s) for s in FINAL},
    )
    assert not wrong, json.dumps(wrong, indent=1)
    assert output_complaints(statuses, there) == []
    assert site.tasks_in_rabbitmq() == 0
    assert set(unhandled.iterdir()) == kept_before
    assert set(faults.done)
