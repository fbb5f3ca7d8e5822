"""When Girder is asked whether a job is still wanted, and told that it runs: as seldom as is enough."""

from __future__ import annotations

import itertools
import json

import jsonpickle
import pytest
from girder_worker.docker.transforms import VolumePath

from girder_worker_slurm.errors import GirderUnreachable, SubmitDeferred, Unreachable
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.girder.token_life import TOKEN_SECONDS, moment_of_id
from girder_worker_slurm.job.state import Outcome, Phase
from girder_worker_slurm.testing import FakeProgram

INACTIVE, QUEUED, RUNNING, SUCCESS, CANCELED = 0, 1, 2, 3, 5


def test_a_job_that_fetches_and_brings_nothing_costs_two_updates(site):
    site.task(status=INACTIVE)
    site.run_to_the_end()
    assert site.shown().statuses == [RUNNING, SUCCESS]
    assert (site.girder.puts, site.girder.user_questions) == (2, 1)
    assert "Submitted as Slurm job 101." in site.shown().text


def test_a_job_with_something_to_fetch_or_bring_is_asked_for_before_that_begins(site):
    site.girder.user_silences = 1
    site.task(status=INACTIVE, hooks=[json.loads(jsonpickle.encode(VolumePath("out.csv")))])
    site.run_until(lambda: site.girder.puts == 1)
    assert site.shown().statuses == [QUEUED]
    site.run_to_the_end()
    assert site.shown().statuses == [QUEUED, RUNNING, SUCCESS]


def test_its_title_is_known_once_girder_was_asked(site):
    site.girder.silences = 1
    site.task(status=INACTIVE)
    site.run_until(site.is_in(Phase.RENDERED))
    assert site.state().girder.title == ""
    site.run_until(site.is_in(Phase.SUBMITTED))
    assert site.state().girder.title == "A title"


@pytest.mark.parametrize("status", [JobStatus.CANCELED, JobStatus.CANCELING, JobStatus.ERROR])
def test_a_job_that_was_cancelled_or_ended_before_never_reaches_slurm(site, status):
    site.task(status=status)
    site.run_to_the_end()
    assert site.calls("submit") == []
    assert site.shown().status == (JobStatus.ERROR if status is JobStatus.ERROR else CANCELED)


def test_a_job_whose_token_is_not_good_never_reaches_slurm(site):
    site.girder.refuses_access = True
    site.task(status=INACTIVE)
    site.run_to_the_end()
    assert site.calls("submit") == []
    assert site.state().cancel == "deleted"


def test_a_job_is_not_submitted_while_girder_cannot_say_whether_it_is_wanted(site):
    site.girder.silences = 5
    site.task(status=INACTIVE)
    site.run_until(lambda: site.girder.silences == 2)
    assert site.state().phase is Phase.RENDERED
    site.girder.jobs["job-t1"].status = CANCELED
    site.run_to_the_end()
    assert site.girder.silences == 0
    assert site.calls("submit") == []


def test_a_frozen_girder_keeps_one_submission_waiting_not_all(site):
    update, asked = site.girder.update, []

    def frozen(job, **values):
        asked.append(site.clock.monotonic())
        site.clock.advance(60.0)
        raise GirderUnreachable("no answer within 60 s")

    site.girder.update = frozen
    for number in range(5):
        site.task(f"t{number}", status=INACTIVE)
    site.run_for(400)
    assert site.calls("submit") == []
    # A minute of waiting, a minute for the others' submissions and cancels.
    assert 2 <= len(asked) <= 5
    assert all(after - before >= 120 for before, after in itertools.pairwise(asked))
    site.girder.update = update
    site.run_to_the_end()
    assert [site.shown(f"t{number}").status for number in range(5)] == [SUCCESS] * 5


def test_a_job_whose_token_expired_while_it_waited_for_its_first_submission_runs(site):
    site.girder.silences = 1
    site.task(status=INACTIVE)
    site.run_until(site.is_in(Phase.RENDERED))
    site.clock.advance(TOKEN_SECONDS + 1)
    site.girder.refuses_access = True
    site.run_to_the_end()
    assert len(site.calls("submit")) == 1
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert site.state().is_untold


def test_an_answer_that_is_lost_before_the_submission_repeats_nothing(site):
    site.girder.lost_answers = 1
    site.task(status=INACTIVE)
    site.run_to_the_end()
    assert site.shown().statuses == [RUNNING, SUCCESS]
    assert len(site.calls("submit")) == 1
    assert site.shown().text.count("Submitted as Slurm job") == 1


def test_an_end_that_girder_has_is_no_cancel_to_the_worker_after_it(site):
    site.task(status=INACTIVE)
    site.run_until(site.is_in(Phase.SUBMITTED))
    site.girder.lost_answers = 1
    site.run_until(lambda: site.shown().status == SUCCESS)
    assert site.girder.lost_answers == 0
    site.restart()
    sent = site.results.success

    def refused_once(*result):
        site.results.success = sent
        raise Unreachable("the broker is away")

    site.results.success = refused_once
    site.run_to_the_end()
    assert [what for what, _, _ in site.results.sent] == ["success"]
    assert site.state().cancel == ""
    assert site.shown().status == SUCCESS


def test_whoever_waits_for_a_place_is_shown_as_queued(site):
    for _ in range(3):
        site.cluster.refuse_next_submit(SubmitDeferred("Slurm accepts no more jobs for now: QOSMax"))
    site.task("t0", status=INACTIVE)
    site.run_for(1)
    site.task("t1", status=INACTIVE)
    site.run_for(8)
    # The first was about to be submitted when Slurm said so; Girder lets no job go back.
    assert [site.shown(task).status for task in ("t0", "t1")] == [RUNNING, QUEUED]
    assert all("QOSMax" in site.shown(task).message for task in ("t0", "t1"))
    site.run_to_the_end()
    assert [site.shown(task).status for task in ("t0", "t1")] == [SUCCESS, SUCCESS]


def test_a_job_that_goes_on_is_told_where_it_stands(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task(status=INACTIVE)
    site.run_until(lambda: site.state().started is not None)
    site.run_for(5)
    assert site.shown().message == "Running"
    assert "Submitted as Slurm job 101." in site.shown().text


def test_the_moment_of_an_id_is_read_from_its_first_bytes():
    # As MongoDB's manual reads it: 507f1f77bcf86cd799439011 was made at 2012-10-17T21:13:27Z.
    assert moment_of_id("507f1f77bcf86cd799439011") == 1350508407.0


@pytest.mark.parametrize(
    "text", ["", "job-t1", "507F1F77BCF86CD799439011", "507f1f77bcf86cd79943901", "g" * 24]
)
def test_what_is_no_object_id_has_no_moment(text):
    assert moment_of_id(text) == 0.0
