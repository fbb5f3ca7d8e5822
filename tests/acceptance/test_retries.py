"""Jobs that the infrastructure ended run again elsewhere; what is left of the attempt before reaches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.test_verdicts import _running
from tests.support.girder_site import SUCCESS, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]


def _attempts(site: Site, job: str) -> list[dict[str, Any]]:
    return [entry for entry in site.worker.entries_of(job) if entry["event"] == "attempt"]


def _nodes(site: Site, job: str) -> list[str]:
    """Where each attempt began to run."""
    return [entry["node"] for entry in site.worker.entries_of(job) if entry["event"] == "started"]


def _expect_success_of_second_attempt(site: Site, job: str, folder: str, first: str, what: str) -> str:
    ended = site.girder.wait_for_end(job, seconds=90)
    log = "".join(ended["log"])
    assert ended["status"] == SUCCESS, log
    assert f"Try 1: Slurm job {first} {what}" in log
    assert len(_attempts(site, job)) == 2
    # Both attempts had their turn, and the end of one was shown.
    assert (log.count("toy starts"), log.count("toy ends")) == (2, 1)
    assert sorted(name.partition("-")[0] for name in site.girder.files(folder)) == ["input", "out.txt"]
    return log


@pytest.mark.fault("node down (slurmd killed)", phases=("running",))
def test_an_attempt_that_outlives_its_lost_node_reaches_nothing(site: Site, folder: str) -> None:
    job, first = _running(site, folder, sleep=30)
    node = site.slurm("squeue", "-h", "-j", first, "-o", "%N").strip()
    service = f"slurmd-gs{site.stack['DEVSTACK_NODES'].split().index(node) + 1}"
    lost = Path(_attempts(site, job)[0]["log_path"])
    site.stack.service("stop", "--kill", service)  # what runs there goes on
    try:
        site.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test", as_root=True)
        wait_until("it runs elsewhere", lambda: len(_nodes(site, job)) == 2, seconds=60)
        assert "toy ends" not in lost.read_text()
        wait_until(
            "the first attempt ends on its lost node", lambda: "toy ends" in lost.read_text(), seconds=60
        )
        log = _expect_success_of_second_attempt(
            site, job, folder, first, f"was lost because its node failed on {node}. It is submitted anew"
        )
    finally:
        site.stack.service("start", service)
        site.resume(node)
    assert node not in _nodes(site, job)[1:]
    # The node is back, and with it the word of the first attempt: nothing of Girder's changes.
    spool = site.worker.root / "spool"
    assert list(spool.glob(f"{_attempts(site, job)[0]['token']}.ended.*"))
    assert site.girder.log(job) == log
    assert len(site.girder.files(folder)) == 2


@pytest.mark.fault("preempted", phases=("running",))
def test_a_preempted_job_runs_again(site: Site, folder: str) -> None:
    site.worker.restart("[slurm]\npartition = low\n[slurm.options]\nmem = 150\nexclusive =\n")
    job, first = _running(site, folder, sleep=6)
    node = site.slurm("squeue", "-h", "-j", first, "-o", "%N").strip()
    rival = site.slurm(
        "sbatch", "--parsable", "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null",
        "--wrap=sleep 60",
    ).strip()  # fmt: skip
    try:
        _expect_success_of_second_attempt(site, job, folder, first, "was preempted")
    finally:
        site.slurm("scancel", rival)


@pytest.mark.fault("requeued by an administrator", phases=("running",))
def test_a_job_that_slurm_put_back_into_the_queue_runs_again_as_another(site: Site, folder: str) -> None:
    site.worker.restart("[slurm.options]\nmem = 150\nbegin = now+3\n")
    job = site.run_toy(folder, sleep=6)
    wait_until("it is submitted", lambda: bool(site.worker.slurm_job_id(job)), seconds=30)
    first = site.worker.slurm_job_id(job)
    site.slurm("scontrol", "update", f"jobid={first}", "requeue=1", as_root=True)  # as a site can force it
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=40)
    site.slurm("scontrol", "requeue", first, as_root=True)
    _expect_success_of_second_attempt(site, job, folder, first, "was put back into the queue while it ran")
    wait_until("its old place is given up", lambda: site.slurm_state(first) in ("", "CANCELLED"), seconds=30)
