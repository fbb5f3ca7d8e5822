"""Jobs that run as other Unix users: their files, their spool, their name in Slurm, and nobody else's."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import replace

import pytest

from girder_worker_slurm.job.state import GirderUser, Outcome, Phase
from girder_worker_slurm.testing import FakeProgram
from girder_worker_slurm.users.mapping_file import parse_mapping
from girder_worker_slurm.users.unix_users import UnixUserRules
from tests.unit.slurm.mapped_users import MAPPING
from tests.unit.slurm.site import Site


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    site.users = MAPPING
    site.restart()
    return site


def submitted(site, task_id="t1"):
    site.run_until(lambda: site.state(task_id).phase is Phase.SUBMITTED, steps_slurm=False)
    (job,) = [job for job in site.cluster.jobs.values() if job.token == site.state(task_id).token]
    return job


def test_a_job_runs_as_the_unix_user_of_its_girder_user_from_its_beginning_to_its_end(site):
    site.cluster.default_program = FakeProgram(output=b"hello\n")
    site.task()
    job = submitted(site)
    assert job.submission.unix_user == "daemon"
    state = site.state()
    run = site.others["daemon"].path(state.token)
    assert job.run == run
    assert state.log_path == f"{run}/output.log"
    assert list(site.runs.root.iterdir()) == []
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert "hello" in site.shown().text
    assert not (run / "nonce").exists()


def test_a_user_without_a_unix_user_runs_as_the_worker(site):
    site.girder.user = GirderUser("u9", "eve")
    site.task()
    assert submitted(site).submission.unix_user == ""
    site.run_to_the_end()
    assert site.others == {}


def test_an_event_counts_only_from_the_spool_of_the_jobs_own_user(site):
    site.task()
    job = submitted(site)
    site.cluster.start(job.slurm_job_id)
    words = {"token": job.token, "kind": "ended", "nonce": job.nonce, "slurm_job_id": job.slurm_job_id}
    for spool in (site.runs.spool, site.runs_as("bin").spool):
        (spool / f"{job.token}.ended.x.0.json").write_text(json.dumps({**words, "exit_code": 0}))
    site.run_for(5.0)
    assert site.state().ended is None
    site.cluster.finish(job.slurm_job_id)
    site.run_to_the_end(steps_slurm=False)
    assert site.state().verdict.outcome is Outcome.SUCCESS


def test_a_job_of_another_user_with_the_same_name_is_not_taken_for_ours(site):
    site.task()
    job = submitted(site)
    # Names of jobs can be seen in the queue: a stranger gives one to a job that never starts.
    stranger = site.cluster.submit(replace(job.submission, unix_user="bin"))
    site.cluster.jobs[stranger].is_held = True
    site.cluster.forget(job.slurm_job_id)
    site.run_until(lambda: "lost" in site.entries(), steps_slurm=False)
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert site.state().slurm_job_id not in (job.slurm_job_id, stranger)
    assert not site.cluster.jobs[stranger].has_run


def test_a_cancel_goes_to_slurm_in_the_name_of_the_jobs_user(site):
    site.task()
    job = submitted(site)
    site.cluster.start(job.slurm_job_id)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert job.state == "CANCELLED"
    assert site.state().verdict.outcome is Outcome.CANCELED


def test_a_worker_that_starts_again_goes_on_with_the_jobs_of_all_users(site):
    site.cluster.default_program = FakeProgram(output=b"hello\n")
    for task_id, login, user in (("t1", "ada", "daemon"), ("t2", "bob", "bin")):
        site.girder.user = GirderUser(login, login)
        site.task(task_id)
        assert submitted(site, task_id).submission.unix_user == user
    for job in list(site.cluster.jobs.values()):
        site.cluster.start(job.slurm_job_id)
        site.cluster.finish(job.slurm_job_id)
    site.others.clear()
    site.restart()
    site.run_to_the_end()
    assert [site.state(task_id).verdict.outcome for task_id in ("t1", "t2")] == [Outcome.SUCCESS] * 2
    assert set(site.others) == {"daemon", "bin"}


def test_a_user_who_cannot_be_reached_for_a_while_delays_nobody_but_their_own_jobs(site):
    site.task("t1")
    job = submitted(site, "t1")
    site.cluster.start(job.slurm_job_id)
    site.unreachable.add("daemon")
    site.restart()
    site.girder.user = GirderUser("u2", "bob")
    site.task("t2")
    site.run_until(lambda: site.state("t2").phase is Phase.CLOSED)
    assert site.state("t1").verdict is None
    site.unreachable.clear()
    site.run_to_the_end()
    assert site.state("t1").verdict.outcome is Outcome.SUCCESS


@pytest.mark.parametrize(
    ("rules", "words"), [(UnixUserRules(), "does not have them"), (None, "no such user")]
)
def test_who_may_not_be_run_as_is_refused_before_anything_is_fetched(site, rules, words):
    site.unix_users = rules or site.unix_users
    if rules is None:
        site.users = parse_mapping("users:\n- login: ada\n  unix_user: nosuchuser")
    site.restart()
    site.task()
    site.run_to_the_end()
    assert site.state().verdict.code == "user_refused"
    assert words in site.state().verdict.sentence
    assert "attempt" not in site.entries()
    assert site.cluster.jobs == {}


@pytest.mark.fault("directory service of accounts away", phases=("directory written",))
def test_an_account_that_a_directory_service_does_not_tell_for_a_while_is_waited_for(site, monkeypatch):
    site.task("t1")
    submitted(site, "t1")
    known = pwd.getpwnam

    def silent(name):
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", silent)
    site.task("t2")
    site.run_for(300)
    assert site.state("t2").verdict is None
    assert site.state("t2").phase is Phase.ADMITTED
    monkeypatch.setattr(pwd, "getpwnam", known)
    site.run_to_the_end()
    assert [site.state(task).verdict.outcome for task in ("t1", "t2")] == [Outcome.SUCCESS] * 2
    assert len(site.cluster.jobs) == 2


def test_a_mapping_that_was_changed_does_not_move_what_has_begun(site):
    site.task()
    job = submitted(site)
    site.users = parse_mapping("users:\n- login: ada")
    site.restart()
    site.cluster.start(job.slurm_job_id)
    site.run_to_the_end()
    assert site.state().unix_user == "daemon"
    assert site.state().verdict.outcome is Outcome.SUCCESS


def test_old_records_have_no_unix_user_and_go_on_as_the_worker(site):
    site.users = parse_mapping("users:\n- login: ada")
    site.restart()
    site.task()
    submitted(site)
    path = site.root.records / "t1" / "state.jsonl"
    assert '"unix_user": ""' in path.read_text()
    path.write_text(path.read_text().replace('"unix_user": "", ', ""))
    site.restart()
    site.run_to_the_end()
    assert site.state().unix_user == ""
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert os.listdir(site.runs.root) == [site.state().token]
