"""`retry-upload`: with whose token, and what it refuses."""

from __future__ import annotations

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.holder import Holder
from girder_worker_singularity.lease import Lease
from tests.unit.slurm.http_girder import HttpGirder, http_girder


class GirderWithKeys(HttpGirder):
    """A Girder that knows one API key, and no job."""

    def answer(self, method, path, parameters, _body):
        if (method, path) == ("POST", "/api_key/token"):
            assert parameters == {}
            if self.forms[-1]["key"] == "good-key":
                return 200, {"authToken": {"token": "of-key"}}
            return 400, {"message": "Invalid API key."}
        return 401, {"message": "Invalid token scope."}


@pytest.fixture
def girder(jobs):
    with http_girder(GirderWithKeys) as girder:
        jobs.environment |= {"GIRDER_WORKER_API_URL": girder.url, "GIRDER_API_KEY": None}
        yield girder


@pytest.fixture
def owing(jobs, girder):
    """An ended job whose outputs Girder did not take."""
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    record.append("admitted", kind="container", girder={"url": f"{girder.url}/job/66a1", "token": "old"})
    for outcome, code in (("success", "completed"), ("error", "output_refused")):
        record.append("verdict", outcome=outcome, code=code, sentence="So it ended.")
    record.append("closed", at=1.0)
    jobs.root.end(record)
    return record


def test_a_job_that_has_not_ended_is_left_to_its_worker(jobs, girder, tmp_path):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    (tmp_path / "token").write_text("t")
    result = jobs.run("retry-upload", "66a1", "--token-file", str(tmp_path / "token"))
    assert result.exit_code == 1
    assert "has not ended yet" in result.stderr
    assert girder.requests == []


def test_show_says_what_is_owed_and_where_it_is(jobs, owing):
    shown = jobs.run("show", "task-1").stdout
    assert f"(in {jobs.root.path}/run/gw-abc-task-1/volume): girder-slurm retry-upload task-1" in shown


@pytest.mark.parametrize("way", ["file", "key file", "key variable", "prompt"])
def test_the_token_comes_from_where_nobody_else_sees_it(jobs, girder, owing, tmp_path, way):
    (tmp_path / "token").write_text("of-file\n")
    (tmp_path / "key").write_text("good-key\n")
    arguments = {
        "file": ("--token-file", str(tmp_path / "token")),
        "key file": ("--api-key-file", str(tmp_path / "key")),
    }.get(way, ())
    if way == "key variable":
        jobs.environment["GIRDER_API_KEY"] = "good-key"
    result = jobs.run("retry-upload", "66a1", *arguments, stdin="of-prompt\n")
    used = {"file": "of-file", "prompt": "of-prompt"}.get(way, "of-key")
    assert result.exit_code == 1
    assert "does not accept the token of job 66a1" in result.stderr
    assert used in girder.tokens
    assert not {used, "good-key"} & set(result.output.split())


def test_a_key_that_girder_does_not_know_is_told(jobs, girder, owing):
    jobs.environment["GIRDER_API_KEY"] = "bad-key"
    result = jobs.run("retry-upload", "66a1")
    assert result.exit_code == 1
    assert "does not accept the API key" in result.stderr
    assert "bad-key" not in result.output


def test_two_at_once_do_not_upload_one_job(jobs, girder, owing, tmp_path):
    (tmp_path / "token").write_text("t")
    with Lease.acquire(owing.path / "retry-upload", Holder.this_process("retry-upload"), SystemClock()):
        result = jobs.run("retry-upload", "66a1", "--token-file", str(tmp_path / "token"))
    assert result.exit_code == 1
    assert "being uploaded already" in result.stderr
    assert girder.requests == []
