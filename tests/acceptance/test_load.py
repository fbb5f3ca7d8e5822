"""Many jobs at once through one worker: no thread and no process per job."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import SUCCESS, GirderSite, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(900)]

JOBS = 200
BATCH = 100


def test_two_hundred_jobs_at_once_through_one_worker(site: Site, folder: str) -> None:
    file = site.girder.upload(folder, "shared.txt", b"hello\n")
    idle = site.worker.threads()

    def start(number: int) -> str:
        girder = GirderSite(site.stack, token=site.girder.token)
        girder.session.headers["Girder-Token"] = site.girder.token
        return girder.run(
            site.toy, inputFile=file, outputFile=f"out-{number}.txt", outputFile_folder=folder, sleep=20
        )

    # However slowly this machine submits, all jobs are to be in Slurm at the same time: none starts before.
    with site.partition_down("normal"):
        with ThreadPoolExecutor(4) as pool:
            jobs = list(pool.map(start, range(JOBS)))
        wait_until(
            "all jobs are in Slurm at the same time",
            lambda: len(site.slurm("squeue", "-h", "-t", "PD").splitlines()) >= JOBS,
            seconds=300,
            every=0.5,
        )
        # Neither threads nor children grow with the jobs; a few threads may come and go with timers.
        assert site.worker.threads() <= idle + 8
    wait_until(
        "many of them run at the same time",
        lambda: len(site.slurm("squeue", "-h", "-t", "R,CG").splitlines()) >= JOBS // 2,
        seconds=120,
        every=0.5,
    )
    assert site.worker.threads() <= idle + 8
    ended = [site.girder.wait_for_end(job, seconds=600) for job in jobs]
    assert [job["status"] for job in ended] == [SUCCESS] * JOBS
    outputs = {name for name in site.girder.files(folder) if name.startswith("out-")}
    assert outputs == {f"out-{number}.txt" for number in range(JOBS)}


def test_a_batch_of_girder_fans_out_and_finishes(site: Site, folder: str) -> None:
    batch = site.girder.new_folder()
    for number in range(BATCH):
        site.girder.upload(batch, f"slide{number:03}.txt", f"{number}\n".encode())
    job = site.girder.call(
        "POST",
        f"slicer_cli_web/cli/{site.toy}/run",
        params={
            "inputFile": "slide.*",
            "inputFile_folder": batch,
            "outputFile": "result-{{reference_base}}.txt",
            "outputFile_folder": folder,
        },
    )
    ended = site.girder.wait_for_end(job["_id"], seconds=600)
    assert ended["status"] == SUCCESS, ended["log"]
    wait_until("all outputs are there", lambda: site.girder.count(folder) == BATCH, seconds=180, every=1.0)


def test_forty_writing_jobs_are_live_while_they_run(site: Site, folder: str) -> None:
    file = site.girder.upload(folder, "shared.txt", b"hello\n")
    jobs = [
        site.girder.run(
            site.toy, inputFile=file, outputFile=f"live-{number}.txt", outputFile_folder=folder, sleep=30
        )
        for number in range(40)
    ]
    wait_until("all run", lambda: len(site.slurm("squeue", "-h", "-t", "R").splitlines()) >= 40, seconds=60)
    for job in jobs:
        wait_until("it has written", lambda job=job: "second 2\n" in site.girder.log(job), seconds=30)
    late = []
    for job in jobs[::5]:
        # The toy writes one line a second: the newest line in Girder against the newest on disk.
        path = next(entry["log_path"] for entry in site.worker.entries_of(job) if entry["event"] == "attempt")
        on_disk = len(re.findall(r"^second ", Path(path).read_text(), re.MULTILINE))
        wait_until(
            "what was on disk is in Girder",
            lambda job=job, line=f"second {on_disk}\n": line in site.girder.log(job),
            # A machine that does other things too is slow; the turns themselves are tested with a clock that is not.
            seconds=6,
            every=0.05,
        )
        late.append(on_disk)
    assert late
    assert [site.girder.wait_for_end(job, seconds=120)["status"] for job in jobs] == [SUCCESS] * 40
