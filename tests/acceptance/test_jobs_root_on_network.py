"""The worker has its jobs root over a network mount that shows what nodes do there up to half a minute late.

A real one: sshfs with `dcache_timeout=30`. Slurm's nodes have the same directory on their disk.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.conftest import Site
from tests.support.girder_site import CANCELED, ERROR, RUNNING, wait_until
from tests.support.network_mount import WorkersMount
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]

#: Longer than a job's own word was waited for when Slurm said that it had ended, and than the mount remembers anything.
UNSEEN_SECONDS = 35.0


@dataclass
class FarSite(Site):
    """A site whose worker has its jobs root over a network mount."""

    mount: WorkersMount

    def run_dir(self, job: str) -> Path:
        """The run directory of a Girder job, on the disk of the nodes."""
        token = next(entry["token"] for entry in self.worker.entries_of(job) if entry["event"] == "attempt")
        return self.worker.root / "run" / token

    def starts(self, job: str) -> None:
        """Returns when the container runs, whatever the worker knows of that."""
        wait_until("it is in Slurm", lambda: self.worker.slurm_job_id(job))
        log = self.run_dir(job) / "output.log"
        wait_until("it runs", lambda: log.exists() and "toy starts" in log.read_text(), seconds=40)

    def state_of(self, job: str) -> str:
        """What Slurm says of the job."""
        return self.slurm_state(self.worker.slurm_job_id(job))


@pytest.fixture(scope="module")
def far_site(shared_site: Site) -> Iterator[FarSite]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    site = shared_site
    root = site.stack.shared / f"network-{uuid.uuid4().hex[:8]}"
    site.worker.stop()
    with WorkersMount(site.stack, root) as mount:
        worker = Worker(site.stack, root, site.worker.sif, prefix=mount.enter)
        try:
            worker.start()
            yield FarSite(site.stack, site.girder, worker, site.image, site.toy, site.sum, mount)
        finally:
            worker.stop()
            for path in (worker.config, worker.log):
                path.unlink(missing_ok=True)


@pytest.fixture
def site(far_site: FarSite) -> FarSite:
    if not far_site.worker.is_running:
        far_site.worker.start()
    return far_site


def _expect_whole(site: FarSite, job: str, *, seconds: int) -> None:
    """That a toy which slept so long ended well, once, and nothing of its log is missing."""
    log = site.girder.log_at_end(job)
    assert log.count("toy starts") == log.count("toy ends") == 1, log
    assert log.count(f"second {seconds}\n") == (1 if seconds else 0), log
    entries = site.worker.entries_of(job)
    assert len([entry for entry in entries if entry["event"] == "attempt"]) == 1
    assert len([entry for entry in entries if entry["event"] == "submitted"]) == 1


def _outputs(site: FarSite, folder: str) -> int:
    return len([name for name in site.girder.files(folder) if name.startswith("out.txt")])


@pytest.mark.fault("events seen late (network mount)", phases=("pending", "running", "ended"))
def test_jobs_end_well_and_at_once_though_the_mount_is_late(site: FarSite, folder: str) -> None:
    # What this is about: a name that the nodes make is not in a listing that the mount remembers.
    here = site.worker.root / "tmp" / "late"
    before = site.mount.listing("tmp")
    here.touch()
    assert site.mount.listing("tmp") == before

    files = [site.girder.upload(folder, name, name.encode()) for name in ("a", "b")]
    many = site.girder.run(
        site.sum, first=files[0], second=files[1], count=3, outputDir="parts", outputDir_folder=folder
    )
    # Their events come when the mount has just asked its server, and when it has not for a while.
    jobs = {site.run_toy(folder, sleep=seconds, lines=2000): seconds for seconds in (0, 1, 2, 3, 5, 8)}
    for job, seconds in jobs.items():
        _expect_whole(site, job, seconds=seconds)
        assert site.girder.log(job).count("line 2000\n") == 1
    site.girder.log_at_end(many)
    files = site.girder.files(folder)
    assert len([name for name in files if name.startswith("out.txt")]) == len(jobs)
    assert {"both.txt", "empty.txt"} < set(files)
    for job in jobs:
        assert _seconds_until_taken(site, job) < 15, site.worker.entries_of(job)
    here.unlink()


def _seconds_until_taken(site: FarSite, job: str) -> float:
    """From the script's last act until the worker had recorded it and all that followed."""
    entries = {entry["event"]: entry for entry in site.worker.entries_of(job)}
    wait_until("it is over", lambda: any(e["event"] == "closed" for e in site.worker.entries_of(job)))
    closed = next(entry for entry in site.worker.entries_of(job) if entry["event"] == "closed")
    return float(closed["at"]) - float(entries["ended"]["at"])


@pytest.mark.fault("events seen late (network mount)", phases=("running", "ended"))
@pytest.mark.fault("job script killed (network mount)", phases=("running",))
def test_what_slurm_says_before_the_job_s_own_word_is_seen_is_no_verdict(site: FarSite, folder: str) -> None:
    with site.mount.hidden("spool"):
        well = site.run_toy(folder, sleep=1)
        badly = site.run_toy(folder, code=3)
        killed = site.run_toy(folder, sleep=100)
        unwanted = site.run_toy(folder, sleep=100)
        for job in (killed, unwanted):
            site.starts(job)
        # It leaves no word, ever; and one that the worker has not seen start, which has the claim.
        site.slurm("scancel", "--signal=KILL", "--full", site.worker.slurm_job_id(killed))
        site.girder.cancel(unwanted)
        wait_until("one ended well", lambda: site.state_of(well) == "COMPLETED", seconds=60)
        wait_until("one ended badly", lambda: site.state_of(badly) == "FAILED", seconds=60)
        unseen_until = time.monotonic() + UNSEEN_SECONDS
        site.girder.wait_for(unwanted, CANCELED, seconds=UNSEEN_SECONDS)
        log = site.girder.log_at_end(killed, ERROR, seconds=UNSEEN_SECONDS)
        assert f"Slurm job {site.worker.slurm_job_id(killed)}" in log
        while time.monotonic() < unseen_until:
            for job in (well, badly):
                assert site.girder.status(job) == RUNNING, site.girder.log(job)
            time.sleep(1.0)
    _expect_whole(site, well, seconds=1)
    assert "exit code 3" in site.girder.log_at_end(badly, ERROR)
    assert _outputs(site, folder) == 1


@pytest.mark.fault("cancelled in Girder (network mount)", phases=("pending",))
def test_a_job_that_has_not_started_is_kept_from_it_by_a_claim_over_the_mount(
    site: FarSite, folder: str
) -> None:
    with site.partition_down("normal"):
        job = site.run_toy(folder)
        wait_until("it is in Slurm", lambda: site.worker.slurm_job_id(job))
        claim = site.run_dir(job) / "claim"
        assert not claim.exists()
        site.girder.cancel(job)
        site.girder.wait_for(job, CANCELED, seconds=30)
        assert json.loads(claim.read_text())["by"] == "worker"


@pytest.mark.fault("worker killed (network mount)", phases=("pending", "running", "ended"))
def test_a_killed_worker_has_all_jobs_back_over_the_mount(site: FarSite, folder: str) -> None:
    jobs = {site.run_toy(folder, sleep=seconds): seconds for seconds in (2, 3, 16)}
    ended, _, runs = jobs
    for job in jobs:
        site.starts(job)
    with site.partition_down("normal"):
        waits = site.run_toy(folder)
        wait_until("it is in Slurm", lambda: site.worker.slurm_job_id(waits))
        site.worker.kill()
        wait_until("one has ended", lambda: site.state_of(ended) == "COMPLETED", seconds=30)
        assert site.state_of(runs) == "RUNNING"
        site.worker.start()
    for job, seconds in {**jobs, waits: 0}.items():
        _expect_whole(site, job, seconds=seconds)
    assert _outputs(site, folder) == 4


@pytest.mark.fault("garbage in the spool (network mount)", phases=("running",))
@pytest.mark.fault("files of the spool deleted (network mount)", phases=("running",))
def test_a_spool_full_of_garbage_and_gaps_costs_no_job_its_end(site: FarSite, folder: str) -> None:
    spool = site.worker.root / "spool"
    with site.mount.hidden("spool"):
        job = site.run_toy(folder, sleep=8)
        site.starts(job)
        token = site.run_dir(job).name
        (started,) = wait_until("it has said so", lambda: list(spool.glob(f"{token}.started.*")))
        word = json.loads(started.read_text())
        started.unlink()  # before anybody has seen it
        for name, text in {
            "half": started.name[:40],
            "long": json.dumps({**word, "kind": "ended", "exit_code": 0, "more": "x" * 100_000}),
            "nonce": json.dumps({**word, "kind": "ended", "exit_code": 0, "nonce": "guessed"}),
            "other": json.dumps({**word, "kind": "ended", "token": "gw-other"}),
            "list": "[" * 5000,
        }.items():
            path = spool / f"{token}.{name}.json"
            path.write_text(text)
            shutil.chown(path, site.stack.user, site.stack.user)
        (spool / f"{token}.directory.json").mkdir()
        os.mkfifo(spool / f"{token}.fifo.json")
        (spool / f"{token}.link.json").symlink_to("/etc/passwd")
    wait_until("it is seen", lambda: f"{token}.half.json" in site.mount.listing("spool"))
    # The mount goes on showing what is no longer there; then not even the spool is.
    (spool / f"{token}.half.json").unlink()
    site.mount.listing("spool")
    shutil.rmtree(spool)
    wait_until("it is made again", spool.is_dir, seconds=20)
    _expect_whole(site, job, seconds=8)
    assert "started" not in {entry["event"] for entry in site.worker.entries_of(job)}


def test_the_doctor_measures_how_late_the_mount_is(site: FarSite) -> None:
    broker = site.stack["GIRDER_WORKER_BROKER"]
    done = site.worker.attempt("doctor", "--json", GIRDER_WORKER_BROKER=broker)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    events = found["events of the node"]
    assert events["level"] == "ok", events
    assert "(9 tried)" in events["found"], events
    assert found["jobs root on the node"]["level"] == "ok"
    assert not (site.worker.root / "event-delay.json").exists()
