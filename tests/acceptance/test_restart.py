"""The worker is killed in every phase with twenty jobs alive: each job still runs once and ends with the truth."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import SUCCESS, NotReached

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(600)]

JOBS = 20
#: The entry after which the worker is killed, as soon as any job has it.
PHASES = (
    "accepted",
    "admitted",
    "attempt",
    "staged",
    "rendered",
    "intent",
    "submitted",
    "started",
    "ended",
    "verdict",
    "upload",
    "uploaded",
    "delivered",
    "reported",
)


def _kill_when(site: Site, phase: str, *, seconds: float = 40) -> None:
    """Kills the worker at the moment a record gets the entry."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in site.worker.root.glob("record/[!.]*/state.jsonl"):
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                continue
            if f'"event": "{phase}"' in text:
                site.worker.kill()
                return
    msg = f"no job came to {phase} within {seconds} s"
    raise NotReached(msg)


def _expect_each_ran_once(site: Site, folder: str, jobs: list[str]) -> None:
    ended = [site.girder.wait_for_end(job, seconds=180) for job in jobs]
    for job in ended:
        log = "".join(job["log"])
        assert job["status"] == SUCCESS, log
        assert log.count("toy starts") == 1, log
        assert log.count("toy ends") == 1, log
        assert log.count("second 1\n") == 1, log
    outputs = [name for name in site.girder.files(folder) if name.startswith("out.txt")]
    assert len(outputs) == len(jobs)
    for entries in (site.worker.entries_of(job) for job in jobs):
        assert len({entry["token"] for entry in entries if entry["event"] == "attempt"}) == 1
        assert len([entry for entry in entries if entry["event"] == "started"]) == 1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.fault(
    "worker killed (SIGKILL)",
    phases=(
        "directory written",
        "inputs staging",
        "intent written",
        "sbatch in flight",
        "submitted",
        "pending",
        "running",
        "ended",
        "outputs uploading",
        "status reporting",
    ),
)
def test_sigkill_in_every_phase_loses_and_doubles_nothing(site: Site, folder: str, phase: str) -> None:
    jobs = [site.run_toy(folder, sleep=1 + number % 3) for number in range(JOBS)]
    _kill_when(site, phase)
    site.worker.start()
    _expect_each_ran_once(site, folder, jobs)


@pytest.mark.fault(
    "worker killed again and again", phases=("inputs staging", "submitted", "running", "outputs uploading")
)
def test_sigkill_again_and_again(site: Site, folder: str) -> None:
    jobs = [site.run_toy(folder, sleep=3) for _ in range(JOBS)]
    for _ in range(5):
        site.worker.kill()
        site.worker.start()
    _expect_each_ran_once(site, folder, jobs)


@pytest.mark.fault("worker stopped (SIGTERM)", phases=("running",))
def test_sigterm_stops_at_once_and_the_jobs_go_on(site: Site, folder: str) -> None:
    jobs = [site.run_toy(folder, sleep=8) for _ in range(3)]
    for job in jobs:
        site.girder.wait_for(job, 2)
    assert site.worker.stop() < 10
    site.worker.start()
    _expect_each_ran_once(site, folder, jobs)
