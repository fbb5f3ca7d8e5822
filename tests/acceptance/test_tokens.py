"""Girder's tokens are gone when a job ends: its outputs wait on the cluster, and another token brings them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from girder_worker_slurm.girder.job_updates import JobStatus, JobUpdates
from girder_worker_slurm.job.state import GirderJob
from tests.support.girder_site import CANCELED, RUNNING, SUCCESS, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

OUTPUT = "text=<late>\ninput=hello\n"
#: What a week does to all tokens of jobs and of their inputs and outputs.
EXPIRE = """
from girder.models.token import Token
for scope in ({'$regex': '^jobs[.]job_'}, 'core.data.write'):
    Token().removeWithQuery({'scope': scope})
"""
#: Jobs that were last updated eight days ago.
AGE = """
import sys, datetime
from girder_jobs.models.job import Job
from bson import ObjectId
long_ago = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=8)
for job in sys.argv[1:]:
    Job().update({'_id': ObjectId(job)}, {'$set': {'updated': long_ago}}, multi=False)
"""


def _secret(site: Site, name: str, text: str) -> Path:
    path = site.worker.config.with_name(f"{site.worker.root.name}-{name}")
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)  # its owner is root here, its reader the worker's user
    return path


@pytest.mark.fault("the job's tokens expired", phases=("running", "outputs uploading", "status reporting"))
def test_what_expired_tokens_cannot_bring_waits_and_another_token_brings_it(site: Site) -> None:
    site.worker.restart("[slurm.options]\nmem = 150\ntime = 8-00:00:00\n")
    folders = [site.girder.new_folder() for _ in range(2)]
    jobs = [site.run_toy(folder, sleep=20, text="late") for folder in folders]
    for job in jobs:
        wait_until("it runs", lambda job=job: "second 1" in site.girder.log(job), seconds=60)
        assert "girder-slurm retry-upload" in site.girder.log(job)
    site.girder.inside(EXPIRE)
    assert [site.slurm_state(site.worker.slurm_job_id(job)) for job in jobs] == ["RUNNING"] * 2
    root = site.worker.root
    wait_until("all records ended", lambda: not list(root.glob("record/[!.]*")), seconds=60)
    for job, folder in zip(jobs, folders, strict=True):
        shown = site.worker.command("show", job)
        volume = re.search(r"^owed to Girder: .*\(in (\S+)\): girder-slurm retry-upload", shown, re.MULTILINE)
        assert volume is not None, shown
        assert site.slurm("cat", f"{volume[1]}/out.txt") == OUTPUT
        assert site.girder.status(job) == RUNNING
        assert "out.txt" not in site.girder.files(folder)

    token = _secret(site, "token", f"{site.girder.token}\n")
    key = site.girder.call("POST", "api_key", params={"name": "late"})["key"]
    options = (("--token-file", token), ("--api-key-file", _secret(site, "key", key)))
    for job, folder, (option, file) in zip(jobs, folders, options, strict=True):
        said = site.worker.command("retry-upload", job, option, str(file))
        assert "which shows the job as SUCCESS" in said
        assert site.girder.status(job) == SUCCESS
        assert site.girder.files(folder)["out.txt"] == OUTPUT.encode()
        assert [name for name in site.girder.files(folder) if name.startswith("out.txt")] == ["out.txt"]
        log = site.girder.log(job)
        assert (log.count("toy starts"), log.count("toy ends")) == (1, 1), log
        assert "uploaded later" in log
        assert "owed to Girder" not in site.worker.command("show", job)


@pytest.mark.fault("Girder restarted after a week", phases=("pending", "running"))
def test_girder_cancels_what_was_not_updated_for_a_week_and_a_heartbeat_counts_as_an_update(
    shared_site: Site,
) -> None:
    made = [shared_site.girder.new_job(title) for title in ("only asked about", "kept alive")]
    asked, alive = (GirderJob(spec["url"], spec["headers"]["Girder-Token"]) for _, spec in made)
    updates = JobUpdates()
    for job in (asked, alive):
        updates.update(job, status=JobStatus.QUEUED)
        updates.update(job, status=JobStatus.RUNNING)
    shared_site.girder.inside(AGE, asked.job_id, alive.job_id)
    before = updates.update(asked)
    assert before.created_at > 0
    updates.update(alive, keep_alive=True)
    shared_site.stack.service("restart", "girder")
    assert shared_site.girder.status(asked.job_id) == CANCELED
    assert "Canceled stale job" in shared_site.girder.log(asked.job_id)
    assert shared_site.girder.status(alive.job_id) == RUNNING
    updates.update(alive, status=JobStatus.SUCCESS)
