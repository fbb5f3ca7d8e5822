"""What lies in the spool and is no word of a job of ours."""

from __future__ import annotations

import json

import pytest

from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.testing import FakeProgram

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
