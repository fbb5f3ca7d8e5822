"""One PUT carries all news of a job; Girder's refusals become errors of ours."""

from __future__ import annotations

import json

import pytest

from girder_worker_slurm.errors import GirderUnreachable, JobDeleted
from girder_worker_slurm.girder.job_updates import AccessRefused, JobStatus, JobUpdates, TransitionRefused
from girder_worker_slurm.job.state import GirderJob
from tests.unit.slurm.http_girder import Mishap, http_girder


@pytest.fixture
def girder():
    with http_girder() as girder:
        yield girder


@pytest.fixture
def job(girder):
    return GirderJob(f"{girder.url}/job/7", "secret")


def test_status_log_and_progress_go_together(girder, job):
    answer = JobUpdates().update(
        job, status=JobStatus.RUNNING, log="Größe & = %\n", overwrite=True, progress=0.5, message="half"
    )
    assert (answer.status, answer.title) == (1, "A title")
    assert girder.forms == [
        {
            "status": "2",
            "log": "Größe & = %\n",
            "overwrite": "true",
            "progressTotal": "1",
            "progressCurrent": "0.5",
            "progressMessage": "half",
        }
    ]
    assert girder.tokens == {"secret"}


def test_an_update_without_news_only_asks(girder, job):
    assert JobUpdates().update(job).status == 1
    assert girder.forms == []
    assert girder.requests == [("PUT", "/job/7")]


def test_text_that_is_no_utf8_does_not_stop_an_update(girder, job):
    JobUpdates().update(job, log="a\udcffb")
    assert girder.forms[0]["log"] == "a?b"


def test_the_log_comes_as_one_text(girder, job):
    assert JobUpdates().log(job) == "one\ntwo\n"
    girder.job["log"] = None
    assert JobUpdates().log(job) == ""


STATUS_REFUSED = {"type": "validation", "field": "status", "message": "No such transition"}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, STATUS_REFUSED, TransitionRefused),
        (400, {"type": "rest", "message": "Invalid job id (7)."}, JobDeleted),
        (400, {"type": "validation", "field": "id", "message": "Invalid ObjectId"}, JobDeleted),
        (404, {"message": "Invalid job id"}, JobDeleted),
        (401, {"message": "You must be logged in."}, AccessRefused),
        (403, {"message": "Write access denied"}, AccessRefused),
        (404, {"message": "Not here"}, GirderUnreachable),
        (400, {"message": "Something else"}, GirderUnreachable),
        (413, {}, GirderUnreachable),
        (429, {}, GirderUnreachable),
        (500, {"message": "Internal"}, GirderUnreachable),
        (502, "<html>Bad gateway</html>", GirderUnreachable),
        (503, "", GirderUnreachable),
    ],
)
def test_each_refusal_is_told_apart(girder, job, status, body, error):
    text = body if isinstance(body, str) else json.dumps(body)
    girder.mishaps.append(Mishap("PUT", "/job", status=status, body=text.encode()))
    with pytest.raises(error):
        JobUpdates().update(job)


def test_no_answer_is_unreachable(girder, job):
    girder.mishaps.append(Mishap("PUT", "/job"))
    with pytest.raises(GirderUnreachable):
        JobUpdates().update(job)


def test_nobody_there_is_unreachable():
    with pytest.raises(GirderUnreachable, match="job 7"):
        JobUpdates().update(GirderJob("http://127.0.0.1:9/api/v1/job/7", "t"))


def test_errors_do_not_tell_the_token(girder, job):
    girder.mishaps.append(Mishap("PUT", "/job", status=403, body=b"{}"))
    with pytest.raises(AccessRefused) as caught:
        JobUpdates().update(job)
    assert "secret" not in str(caught.value)


def test_an_answer_that_is_no_json_is_girder_unreachable(girder):
    girder.mishaps.append(Mishap("PUT", "/job", status=200, body=b"<html>Down for maintenance</html>"))
    with pytest.raises(GirderUnreachable):
        JobUpdates().update(GirderJob(f"{girder.url}/job/7", "t"))


def test_an_empty_answer_is_girder_unreachable(girder):
    girder.mishaps.append(Mishap("PUT", "/job", status=200, body=b"null"))
    with pytest.raises(GirderUnreachable):
        JobUpdates().update(GirderJob(f"{girder.url}/job/7", "t"))


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.fault("Girder away", phases=("running", "status reporting"))
def test_a_page_that_stands_in_for_girder_says_nothing_about_a_job(status):
    """401 and 403 of a proxy were Girder's refusal: a job that was just taken was given up without a word."""
    with http_girder() as girder:
        job = GirderJob(f"{girder.url}/job/7", "secret")
        for page in (b"<h1>Maintenance</h1>", b'["no", "object"]', b""):
            girder.mishaps.append(Mishap("PUT", "/job", status=status, body=page))
            with pytest.raises(GirderUnreachable):
                JobUpdates().update(job, status=JobStatus.QUEUED)
