"""Cancel is pressed in every phase of a job's life: the Slurm job goes, nothing is uploaded, the job ends CANCELED."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import CANCELED, RUNNING, SUCCESS, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site
    from tests.support.slow_link import SlowLink

pytestmark = pytest.mark.girder


def _expect_cancelled(site: Site, job: str, folder: str, *, seconds: float = 30) -> dict[str, object]:
    ended = site.girder.wait_for_end(job, seconds=seconds)
    assert ended["status"] == CANCELED, ended["log"]
    assert "out.txt" not in site.girder.files(folder)
    slurm = site.worker.slurm_job_id(job)
    if slurm:
        wait_until(
            "the Slurm job is gone",
            lambda: site.slurm_state(slurm) in ("", "CANCELLED", "COMPLETED"),
            seconds=15,
        )
    return ended


def test_cancel_while_running_ends_the_slurm_job_within_seconds(site: Site, folder: str) -> None:
    job = site.run_toy(folder, sleep=120)
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=30)
    site.girder.cancel(job)
    _expect_cancelled(site, job, folder, seconds=10)


def test_cancel_of_a_cli_that_ignores_sigterm(site: Site, folder: str) -> None:
    job = site.run_toy(folder, sleep=120, mode="ignore-term")
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=30)
    site.girder.cancel(job)
    _expect_cancelled(site, job, folder, seconds=40)


def test_cancel_while_pending(site: Site, folder: str) -> None:
    site.worker.restart("[slurm]\npartition =\n[slurm.options]\nmem = 150\nbegin = now+600\n")
    job = site.run_toy(folder)
    site.girder.wait_for(job, RUNNING)
    wait_until(
        "its progress shows Slurm's reason",
        lambda: "BeginTime" in str(site.girder.job(job)["progress"]),
        seconds=30,
    )
    site.girder.cancel(job)
    _expect_cancelled(site, job, folder, seconds=10)


@pytest.mark.fault("cancelled while the worker is down", phases=("message received",))
def test_cancel_while_it_waits_in_rabbitmq_and_the_worker_is_down(site: Site, folder: str) -> None:
    site.worker.stop()
    job = site.run_toy(folder)
    site.girder.cancel(job)
    site.worker.start()
    ended = site.girder.wait_for_end(job)
    assert ended["status"] == CANCELED
    assert site.worker.slurm_job_id(job) == ""


def test_cancel_while_it_waits_in_rabbitmq_and_the_worker_is_full(site: Site, folder: str) -> None:
    site.worker.restart("[jobs]\nmax_accepted = 1\n")
    first = site.run_toy(folder, sleep=15)
    wait_until("it runs", lambda: "second 1" in site.girder.log(first), seconds=30)
    second = site.girder.run(
        site.toy,
        inputFile=site.girder.upload(folder, "b.txt", b"b"),
        outputFile="second.txt",
        outputFile_folder=folder,
    )
    wait_until("its task waits in RabbitMQ", lambda: site.tasks_in_rabbitmq() == 1, seconds=10)
    site.girder.cancel(second)
    assert site.girder.wait_for_end(first, seconds=60)["status"] == SUCCESS
    wait_until("its task was taken", lambda: site.tasks_in_rabbitmq() == 0, seconds=60)
    wait_until("the worker has ended it", lambda: _events(site, second)[-1:] == ["closed"], seconds=30)
    assert site.girder.status(second) == CANCELED
    assert "intent" not in _events(site, second)
    assert "second.txt" not in site.girder.files(folder)


@pytest.mark.fault("cancelled while the worker is down", phases=("running",))
def test_cancel_while_the_job_runs_and_the_worker_is_down(site: Site, folder: str) -> None:
    job = site.run_toy(folder, sleep=120)
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=30)
    site.worker.kill()
    site.girder.cancel(job)
    site.worker.start()
    _expect_cancelled(site, job, folder)


@pytest.mark.fault("cancelled while the worker is down", phases=("ended",))
def test_a_job_that_ended_while_the_worker_was_down_and_was_cancelled_uploads_nothing(
    site: Site, folder: str
) -> None:
    job = site.run_toy(folder, sleep=3)
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=30)
    slurm = site.worker.slurm_job_id(job)
    site.worker.kill()
    site.girder.cancel(job)
    wait_until("Slurm has ended it", lambda: site.slurm_state(slurm) in ("COMPLETED", ""), seconds=30)
    site.worker.start()
    _expect_cancelled(site, job, folder)


@pytest.mark.fault("Girder job deleted while the worker is down", phases=("running",))
def test_a_deleted_job_is_cancelled_in_slurm_and_uploads_nothing(site: Site, folder: str) -> None:
    job = site.run_toy(folder, sleep=120)
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=30)
    slurm = site.worker.slurm_job_id(job)
    site.worker.kill()
    site.girder.call("DELETE", f"job/{job}")
    site.worker.start()
    wait_until("Slurm has cancelled it", lambda: site.slurm_state(slurm) in ("CANCELLED", ""), seconds=30)
    assert "out.txt" not in site.girder.files(folder)


def _events(site: Site, job: str) -> list[str]:
    return [entry["event"] for entry in site.worker.entries_of(job)]


def test_cancel_while_inputs_are_staged(site: Site, folder: str, slow: SlowLink) -> None:
    file = site.girder.upload(folder, "large.bin", b"x" * 20_000_000)
    slow.bytes_per_second = 1_000_000
    job = site.girder.run(site.toy, inputFile=file, outputFile="out.txt", outputFile_folder=folder)
    wait_until("staging has begun", lambda: "attempt" in _events(site, job), seconds=30)
    site.girder.cancel(job)
    _expect_cancelled(site, job, folder, seconds=15)
    assert "submitted" not in _events(site, job)


def test_cancel_while_outputs_are_uploaded(site: Site, folder: str, slow: SlowLink) -> None:
    job = site.run_toy(folder, mode="big")
    wait_until("the analysis has ended", lambda: "ended" in _events(site, job), seconds=60, every=0.02)
    slow.bytes_per_second = 15_000_000
    wait_until("the upload has begun", lambda: "upload" in _events(site, job), seconds=30, every=0.02)
    site.girder.cancel(job)
    _expect_cancelled(site, job, folder, seconds=30)
    assert "uploaded" not in _events(site, job)


def test_one_cancelled_job_does_not_disturb_the_others(site: Site, folder: str) -> None:
    jobs = [site.run_toy(folder, sleep=6) for _ in range(4)]
    wait_until("it runs", lambda: "second 1" in site.girder.log(jobs[0]), seconds=30)
    site.girder.cancel(jobs[0])
    assert site.girder.wait_for_end(jobs[0])["status"] == CANCELED
    assert [site.girder.wait_for_end(job)["status"] for job in jobs[1:]] == [SUCCESS] * 3
