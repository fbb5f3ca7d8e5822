"""Many jobs of one user do not stand before the single job of another."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import CANCELED, QUEUED, SUCCESS, GirderSite, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]

MANY = 20


def _run(site: Site, girder: GirderSite, number: int) -> dict[str, str]:
    folder = girder.new_folder()
    file = girder.upload(folder, "in.txt", b"hello\n")
    return {
        girder.run(
            site.toy, inputFile=file, outputFile=f"o{n}.txt", outputFile_folder=folder, sleep=1
        ): folder
        for n in range(number)
    }


def _submitted(site: Site) -> dict[str, float]:
    """When each Girder job was submitted."""
    found = {}
    for entries in site.worker.entries().values():
        girder = next((entry["girder"] for entry in entries if entry.get("girder")), None)
        at = next((entry["at"] for entry in entries if entry["event"] == "submitted"), None)
        if girder is not None and at is not None:
            found[girder["url"].rpartition("/")[2]] = at
    return found


def test_a_single_job_overtakes_those_that_another_user_has_waiting(site: Site) -> None:
    site.worker.stop()
    site.worker.extra_config = "[jobs]\nmax_submitted = 2\n"
    batch, single = (site.girder.new_user(f"{name}{uuid.uuid4().hex[:8]}") for name in ("batch", "single"))
    many = list(_run(site, batch, MANY))
    (one,) = _run(site, single, 1)
    site.worker.start()
    waiting = many[-1]
    wait_until(
        "it says what it waits for",
        lambda: "Waiting: 2 jobs are in Slurm" in str(batch.job(waiting)["progress"]),
        seconds=60,
    )
    assert batch.status(waiting) == QUEUED
    batch.cancel(waiting)
    assert single.wait_for_end(one, seconds=90)["status"] == SUCCESS
    assert batch.wait_for_end(waiting)["status"] == CANCELED
    assert [batch.wait_for_end(job, seconds=180)["status"] for job in many[:-1]] == [SUCCESS] * (MANY - 1)
    submitted = _submitted(site)
    assert waiting not in submitted
    # It was the last in RabbitMQ; only those were before it that were ready when it was not.
    order = sorted((at, job) for job, at in submitted.items() if job in many or job == one)
    assert len(order) == MANY
    assert [job for _, job in order].index(one) < MANY // 2, order
