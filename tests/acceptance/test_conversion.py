"""Images converted by Slurm jobs, for login nodes that forbid long work."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import SUCCESS, wait_until
from tests.support.toy_cli import push_toy_cli

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = pytest.mark.girder

IN_SLURM = "[slurm]\nconvert_images = true\n[slurm.convert_options]\nmem = 1G\n"
LATER = IN_SLURM + "begin = now+15\n"


def _new_image(site: Site) -> str:
    return push_toy_cli(site.stack["DEVSTACK_REGISTRY"], f"tests/toy:{uuid.uuid4().hex[:8]}")


def _conversions(site: Site) -> dict[str, str]:
    """Slurm's jobs that convert images: id → state. Their names are a letter longer than those of Girder's jobs."""
    rows = (line.split() for line in site.slurm("squeue", "-h", "-t", "all", "-o", "%i %T %j").splitlines())
    return {
        row[0]: row[1]
        for row in rows
        if len(row) == 3 and re.fullmatch(r"gw-[0-9a-f]+-c[0-9a-f]{20}", row[2])
    }


def _forget_sifs(site: Site) -> None:
    for path in site.worker.sif.glob("*.sif*"):
        path.unlink()


def test_an_image_is_converted_by_a_slurm_job(site: Site, folder: str) -> None:
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    before = _conversions(site)
    site.worker.restart(IN_SLURM)
    image = _new_image(site)
    site.girder.ingest(image)
    made = _conversions(site).keys() - before.keys()
    assert len(made) == 1
    wait_until(
        "the conversion has ended", lambda: _conversions(site)[next(iter(made))] == "COMPLETED", seconds=20
    )
    job = site.girder.run(
        site.girder.cli(image, "Toy"),
        inputFile=site.girder.upload(folder, "in.txt", b"hello\n"),
        outputFile="made.txt",
        outputFile_folder=folder,
    )
    assert site.girder.wait_for_end(job)["status"] == SUCCESS
    assert list((site.worker.root / "tmp" / "commands").iterdir()) == []


def test_jobs_that_wait_for_an_image_say_so_and_share_one_conversion(site: Site, folder: str) -> None:
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    site.worker.restart(LATER)
    _forget_sifs(site)
    before = _conversions(site)
    file = site.girder.upload(folder, "shared.txt", b"hello\n")

    def run(number: int) -> str:
        return site.girder.run(site.toy, inputFile=file, outputFile=f"{number}.txt", outputFile_folder=folder)

    jobs = [run(number) for number in range(5)]
    # Before the others come: on a busy machine a hundred take longer than the conversion.
    for job in jobs:
        wait_until(
            "it says what it waits for",
            lambda job=job: "image" in str(site.girder.job(job)["progress"]).lower(),
            seconds=20,
        )
    jobs += [run(number) for number in range(5, 100)]
    assert [site.girder.wait_for_end(job, seconds=180)["status"] for job in jobs] == [SUCCESS] * 100
    assert len(_conversions(site).keys() - before.keys()) == 1


@pytest.mark.fault("worker killed (SIGKILL)", phases=("image converting",))
def test_a_killed_worker_s_conversion_is_begun_again_by_the_next(site: Site, folder: str) -> None:
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    site.worker.restart(LATER)
    _forget_sifs(site)
    before = _conversions(site)
    job = site.run_toy(folder)
    first = wait_until("it is submitted", lambda: _conversions(site).keys() - before.keys(), seconds=20)
    site.worker.kill()
    site.worker.start()
    assert site.girder.wait_for_end(job)["status"] == SUCCESS
    (second,) = _conversions(site).keys() - before.keys() - first
    states = _conversions(site)
    assert (states[first.pop()], states[second]) == ("CANCELLED", "COMPLETED")
    assert {path.name for path in site.worker.sif.glob(".tmp-*")} == set()


@pytest.mark.fault("SIF damaged", phases=("image converting",))
def test_a_sif_that_was_cut_off_is_made_anew_before_a_job_runs_from_it(site: Site, folder: str) -> None:
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    (sif,) = site.worker.sif.glob(f"*{site.image.rpartition(':')[2]}.sif")
    whole = sif.stat().st_size
    with sif.open("r+b") as file:
        file.truncate(whole // 2)
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    assert sif.stat().st_size > whole // 2
