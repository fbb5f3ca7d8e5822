"""What lies in the spool and is no word of a job of ours."""

from __future__ import annotations

import json

import pytest

from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job.state import Outcome
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.running_jobs import running

SUCCESS = JobStatus.SUCCESS


def test_an_event_without_the_right_nonce_is_ignored(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    state = site.state()
    forged = {
        "token": state.token,
        "nonce": "guessed",
        "kind": "ended",
        "slurm_job_id": state.slurm_job_id,
        "exit_code": 0,
        "cause": "exit",
    }
    (site.runs.spool / f"{state.token}.ended.9.9.json").write_text(json.dumps(forged))
    site.run_for(30)
    assert site.state().ended is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 1}', "\0\0", "null"])
@pytest.mark.fault("garbage in the spool", phases=("running",))
def test_files_that_are_no_events_disturb_nobody(site, text):
    (site.runs.spool / "gw-test-x.ended.1.0.json").write_text(text)
    (site.runs.spool / "dangling.json").symlink_to("/nowhere")
    site.task()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS


@pytest.mark.parametrize("name", ["event", "self", "durable", "kind"])
def test_an_event_with_a_field_of_any_name_neither_stops_the_worker_nor_becomes_another_entry(site, name):
    """Fields become arguments of `Record.append`: `event` raised TypeError in the supervising thread, again and again."""
    (job,) = running(site)
    token, slurm_job_id = site.state(job).token, site.state(job).slurm_job_id
    nonce = (site.runs.path(token) / "nonce").read_text()
    words = {"token": token, "kind": "ended", "nonce": nonce, "slurm_job_id": slurm_job_id, "exit_code": 3}
    if name != "kind":
        words[name] = "verdict"
    (site.runs.spool / f"{token}.ended.{slurm_job_id}.0.json").write_text(json.dumps(words))
    site.cluster.default_program = FakeProgram()
    site.task("other")
    site.run_to_the_end()
    assert site.state(job).verdict.code == "failed"
    assert site.state("other").verdict.outcome is Outcome.SUCCESS


def test_a_mount_that_remembers_directories_is_asked_anew_once_a_second_while_there_are_jobs(
    site, monkeypatch
):
    asked = []
    events = site.runs.events

    def listed(is_wanted=None, *, anew=False):
        asked.append(anew)
        return events(is_wanted, anew=anew)

    monkeypatch.setattr(site.runs, "events", listed)
    site.run_for(10)
    assert asked
    assert not any(asked)
    running(site)
    asked.clear()
    site.run_for(20)
    assert 15 <= sum(asked) <= 25
