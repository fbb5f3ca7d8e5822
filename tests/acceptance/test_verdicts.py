"""Every way a job can end in Slurm reaches the Girder job as a sentence."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import ERROR, RUNNING, SUCCESS, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]


def _running(site: Site, folder: str, **params: object) -> tuple[str, str]:
    job = site.run_toy(folder, **params)
    wait_until("it runs", lambda: "toy starts" in site.girder.log(job), seconds=30)
    return job, site.worker.slurm_job_id(job)


def _kill_the_script(slurm: str) -> None:
    """Ends a job's script on its node in a way that leaves it no time for a last word."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if any(word.endswith(f"/job{int(slurm):05d}/slurm_script".encode()) for word in words):
            os.kill(int(process.name), signal.SIGKILL)
            return
    pytest.fail(f"The script of Slurm job {slurm} does not run")


def _expect_error(site: Site, job: str, *words: str, seconds: float = 60) -> None:
    ended = site.girder.wait_for_end(job, seconds=seconds)
    log = "".join(ended["log"])
    assert ended["status"] == ERROR, log
    for word in words:
        assert word in log
    assert "Traceback" not in log


@pytest.mark.fault("cancelled by an administrator (scancel)", phases=("running",))
def test_cancelled_in_slurm_by_somebody_else(site: Site, folder: str) -> None:
    job, slurm = _running(site, folder, sleep=100)
    site.slurm("scancel", slurm)
    _expect_error(site, job, f"Slurm job {slurm} was cancelled in Slurm", "not from Girder")


def test_out_of_memory(site: Site, folder: str) -> None:
    job = site.run_toy(folder, mode="memory")
    _expect_error(site, job, "used more memory than it was given")


def test_time_limit(site: Site, folder: str) -> None:
    site.worker.restart("[slurm.options]\nmem = 150\ntime = 1\n")
    job, _ = _running(site, folder, sleep=200)
    _expect_error(site, job, "reached its time limit", seconds=150)


@pytest.mark.fault("node does not boot", phases=("pending",))
def test_a_node_that_does_not_boot(site: Site, folder: str) -> None:
    node = site.stack["DEVSTACK_NODES"].split()[2]
    site.worker.restart(
        f"[slurm]\ninfrastructure_retries = 0\n[slurm.options]\nmem = 150\nnodelist = {node}\n"
    )
    power_saving = (
        "SuspendProgram=/bin/true",
        "ResumeProgram=/bin/true",
        "SuspendTime=100000",
        "SuspendTimeout=3",
        "ResumeTimeout=8",
    )

    def state() -> str:
        return site.slurm("sinfo", "-h", "-n", node, "-p", "normal", "-o", "%T").strip()

    try:
        with site.slurm_conf(*power_saving):
            site.slurm("scontrol", "update", f"nodename={node}", "state=power_down_force", as_root=True)
            wait_until("the node is powered down", lambda: state() == "idle~", seconds=60)
            site.stack.service("stop", "slurmd-gs3")
            job = site.run_toy(folder)
            # Slurm 22.05 calls it a failed node, later versions may say BOOT_FAIL.
            _expect_error(site, job, "node", "Start the job again", seconds=90)
            site.stack.service("start", "slurmd-gs3")
            site.slurm("scontrol", "update", f"nodename={node}", "state=power_up", as_root=True)
            wait_until("the node is back", lambda: state() in ("idle", "down"), seconds=60)
    finally:
        site.stack.service("start", "slurmd-gs3")
        site.resume(node)


def test_an_option_that_sbatch_refuses_is_shown_in_its_own_words(site: Site, folder: str) -> None:
    site.worker.restart("[slurm]\npartition = nosuch\n")
    job = site.run_toy(folder)
    _expect_error(site, job, "Slurm refused the job", "invalid partition specified")


@pytest.mark.fault("job script killed", phases=("running",))
def test_a_job_without_the_script_s_word_is_no_success(site: Site, folder: str) -> None:
    job, slurm = _running(site, folder, sleep=100)
    site.slurm("scancel", "--signal=KILL", "--full", slurm)
    _expect_error(site, job, f"Slurm job {slurm}")


def test_a_pending_job_shows_slurm_s_reason(site: Site, folder: str) -> None:
    site.worker.restart("[slurm.options]\nmem = 150\nbegin = now+5\n")
    job = site.run_toy(folder)
    site.girder.wait_for(job, RUNNING)
    wait_until(
        "the reason is shown", lambda: "BeginTime" in str(site.girder.job(job)["progress"]), seconds=20
    )


def test_a_job_that_cannot_end_before_its_deadline(site: Site, folder: str) -> None:
    # Slurm takes it, and finds soon that it begins too late to keep its deadline.
    site.worker.restart("[slurm.options]\nmem = 150\ntime = 1\nbegin = now+30\ndeadline = now+65\n")
    job = site.run_toy(folder)
    _expect_error(site, job, "could not end before its deadline", seconds=100)


@pytest.mark.fault("Slurm has forgotten the job (MinJobAge)", phases=("running",))
def test_a_job_that_slurm_has_forgotten(site: Site, folder: str) -> None:
    with site.slurm_conf("MinJobAge=2"):
        job, slurm = _running(site, folder, sleep=100)
        site.worker.kill()
        _kill_the_script(slurm)
        wait_until("Slurm has forgotten it", lambda: site.slurm_state(slurm) == "", seconds=120)
        site.worker.start()
        # Its log has to stand still for a minute.
        _expect_error(site, job, f"Slurm job {slurm} had started", "is gone from Slurm", seconds=150)
    assert "out.txt" not in site.girder.files(folder)


@pytest.mark.fault("Slurm has forgotten the job (MinJobAge)", phases=("ended",))
def test_a_job_that_slurm_forgot_after_it_had_ended_well_is_a_success(site: Site, folder: str) -> None:
    with site.slurm_conf("MinJobAge=2"):
        job, slurm = _running(site, folder, sleep=3)
        site.worker.kill()
        wait_until("Slurm has forgotten it", lambda: site.slurm_state(slurm) == "", seconds=120)
        site.worker.start()
        assert site.girder.wait_for_end(job)["status"] == SUCCESS
    assert "out.txt" in site.girder.files(folder)


def test_a_node_that_cannot_launch_the_job(site: Site, folder: str) -> None:
    with site.slurm_conf("Prolog=/bin/false"):
        job = site.run_toy(folder)
        _expect_error(site, job, "Try 2: ", "could not be launched", "That was try 3. Before it: ")
        drained = site.slurm("sinfo", "-h", "-N", "-p", "normal", "-o", "%T").split()
    assert drained.count("drained") == 3  # one a try


@pytest.mark.fault("launch fails on the node", phases=("pending",))
def test_a_failed_launch_is_tried_again(site: Site, folder: str) -> None:
    prolog = Path(site.stack["SLURM_CONF"]).with_name("prolog")
    mark = prolog.with_name("prolog-has-failed")
    prolog.write_text(f"#!/bin/sh\nmkdir {mark} 2>/dev/null && exit 1\nexit 0\n", encoding="utf-8")
    prolog.chmod(0o755)
    try:
        with site.slurm_conf(f"Prolog={prolog}"):
            job = site.run_toy(folder)
            ended = site.girder.wait_for_end(job, seconds=60)
            assert mark.is_dir()
    finally:
        prolog.unlink()
        mark.rmdir()
    assert ended["status"] == SUCCESS
    assert "could not be launched on" in "".join(ended["log"])


@pytest.mark.fault("launch fails on the node", phases=("pending",))
def test_a_job_that_slurm_holds_after_a_failed_launch(site: Site, folder: str) -> None:
    site.worker.restart("[slurm]\ninfrastructure_retries = 0\n[slurm.options]\nmem = 150\nbegin = now+6\n")
    with site.slurm_conf("Prolog=/bin/false"):
        job = site.run_toy(folder)
        wait_until("it is submitted", lambda: bool(site.worker.slurm_job_id(job)), seconds=30)
        slurm = site.worker.slurm_job_id(job)
        # A site can have every job requeued after a failed launch; then Slurm holds it.
        site.slurm("scontrol", "update", f"jobid={slurm}", "requeue=1", as_root=True)
        _expect_error(site, job, f"Slurm job {slurm} cannot run", "launch failed requeued held", seconds=90)
    wait_until("it left the queue", lambda: site.slurm_state(slurm) in ("", "CANCELLED"), seconds=30)


@pytest.mark.fault("held by an administrator", phases=("pending",))
def test_a_job_that_somebody_holds_waits_and_says_so(site: Site, folder: str) -> None:
    site.worker.restart("[slurm.options]\nmem = 150\nbegin = now+6\n")
    job = site.run_toy(folder)
    wait_until("it is submitted", lambda: bool(site.worker.slurm_job_id(job)), seconds=30)
    site.slurm("scontrol", "hold", site.worker.slurm_job_id(job), as_root=True)
    wait_until(
        "the reason is shown", lambda: "JobHeldAdmin" in str(site.girder.job(job)["progress"]), seconds=30
    )
    site.slurm("scontrol", "release", site.worker.slurm_job_id(job), as_root=True)
    assert site.girder.wait_for_end(job)["status"] == SUCCESS
