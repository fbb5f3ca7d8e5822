"""Every way a job can end in Slurm reaches the Girder job as a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import ERROR, RUNNING, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]


def _running(site: Site, folder: str, **params: object) -> tuple[str, str]:
    job = site.run_toy(folder, **params)
    wait_until("it runs", lambda: "toy starts" in site.girder.log(job), seconds=30)
    return job, site.worker.slurm_job_id(job)


def _expect_error(site: Site, job: str, *words: str, seconds: float = 60) -> None:
    ended = site.girder.wait_for_end(job, seconds=seconds)
    log = "".join(ended["log"])
    assert ended["status"] == ERROR, log
    for word in words:
        assert word in log
    assert "Traceback" not in log


def test_cancelled_in_slurm_by_somebody_else(site: Site, folder: str) -> None:
    job, slurm = _running(site, folder, sleep=100)
    site.slurm("scancel", slurm)
    _expect_error(site, job, f"Slurm job {slurm} was cancelled in Slurm", "not from Girder")


def test_out_of_memory(site: Site, folder: str) -> None:
    job = site.run_toy(folder, mode="memory")
    _expect_error(site, job, "used more memory than it was given")


def test_time_limit(site: Site, folder: str) -> None:
    site.worker.stop()
    site.worker.extra_config = "[slurm.options]\nmem = 150\ntime = 1\n"
    site.worker.start()
    job, _ = _running(site, folder, sleep=200)
    _expect_error(site, job, "reached its time limit", seconds=150)


def test_node_failure(site: Site, folder: str) -> None:
    job, slurm = _running(site, folder, sleep=100)
    node = site.slurm("squeue", "-h", "-j", slurm, "-o", "%N").strip()
    try:
        site.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test", as_root=True)
        _expect_error(site, job, "because its node failed", node)
    finally:
        # The node may have come back by itself by now, and then there is nothing to resume.
        site.slurm("scontrol", "update", f"nodename={node}", "state=resume", as_root=True, check=False)
        wait_until(
            "the node is back",
            lambda: "down" not in site.slurm("sinfo", "-h", "-n", node, "-o", "%T"),
            seconds=60,
        )


def test_preempted(site: Site, folder: str) -> None:
    site.worker.stop()
    site.worker.extra_config = "[slurm]\npartition = low\n[slurm.options]\nmem = 150\nexclusive =\n"
    site.worker.start()
    job, slurm = _running(site, folder, sleep=100)
    node = site.slurm("squeue", "-h", "-j", slurm, "-o", "%N").strip()
    rival = site.slurm(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--exclusive",
        f"--nodelist={node}",
        "--output=/dev/null",
        "--wrap=sleep 60",
    ).strip()
    try:
        _expect_error(site, job, "preempted")
    finally:
        site.slurm("scancel", rival)


def test_an_option_that_sbatch_refuses_is_shown_in_its_own_words(site: Site, folder: str) -> None:
    site.worker.stop()
    site.worker.extra_config = "[slurm]\npartition = nosuch\n"
    site.worker.start()
    job = site.run_toy(folder)
    _expect_error(site, job, "Slurm refused the job", "invalid partition specified")


def test_a_job_without_the_script_s_word_is_no_success(site: Site, folder: str) -> None:
    job, slurm = _running(site, folder, sleep=100)
    site.slurm("scancel", "--signal=KILL", "--full", slurm)
    _expect_error(site, job, f"Slurm job {slurm}")


def test_a_pending_job_shows_slurm_s_reason(site: Site, folder: str) -> None:
    site.worker.stop()
    site.worker.extra_config = "[slurm.options]\nmem = 150\nbegin = now+5\n"
    site.worker.start()
    job = site.run_toy(folder)
    site.girder.wait_for(job, RUNNING)
    wait_until(
        "the reason is shown", lambda: "BeginTime" in str(site.girder.job(job)["progress"]), seconds=20
    )
