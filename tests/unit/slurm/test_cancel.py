"""A cancel in each phase of a job: nothing starts any more, what runs is ended, and what has ended stays."""

from __future__ import annotations

import pytest

from girder_worker_singularity.errors import RegistryUnreachable
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job import cancel_watch
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.records.cancel_request import FILE_NAME, cancel_request, request_cancel
from girder_worker_slurm.testing import FakeProgram

SUCCESS, ERROR, CANCELED = JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED


PHASES = [Phase.ACCEPTED, Phase.ADMITTED, Phase.STAGED, Phase.RENDERED, Phase.SUBMITTING, Phase.SUBMITTED]


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancel_in_each_phase_before_the_start_runs_nothing(site, phase):
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(phase), steps_slurm=False)
    site.revoked.add("t1")
    site.run_to_the_end(steps_slurm=False)
    site.cluster.step()
    assert site.shown().status == CANCELED
    assert all(not job.has_run for job in site.cluster.jobs.values())
    assert [sent[0] for sent in site.results.sent] == ["revoked"]


def test_a_cancel_of_a_running_job_reaches_slurm_and_ends_canceled(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == CANCELED
    assert len(site.calls("cancel")) == 1


def test_a_cancel_that_girder_tells_with_an_answer_is_a_cancel(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    site.shown().status = JobStatus.CANCELING
    site.run_to_the_end(seconds=1500)
    assert site.shown().status == CANCELED


def test_a_job_that_was_cancelled_before_the_worker_saw_it_never_reaches_slurm(site):
    site.task(status=JobStatus.CANCELED)
    site.run_to_the_end()
    assert site.shown().status == CANCELED
    assert site.calls("submit") == []


def test_a_cancel_after_the_analysis_but_before_the_report_wins(site):
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(Phase.DECIDED))
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == CANCELED


@pytest.mark.parametrize(("code", "status", "word"), [(0, SUCCESS, "success"), (3, ERROR, "failure")])
def test_a_cancel_after_girder_has_taken_the_end_changes_nothing(site, code, status, word):
    site.cluster.default_program = FakeProgram(exit_code=code)
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(Phase.DELIVERED))
    # Girder takes it, but its answer gets lost; then the user cancels what he still sees running.
    site.girder.lost_answers = 1
    site.run_until(lambda: site.shown().status == status)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == status
    assert [what for what, *_ in site.results.sent] == [word]


def test_a_cancel_while_the_image_is_made_ends_the_job(site):
    site.images.error = RegistryUnreachable("no answer")
    site.task(image="other:1")
    site.run_until(lambda: site.images.made != [])
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == CANCELED
    assert site.calls("submit") == []


def _looks(monkeypatch) -> list[str]:
    """The records that were looked at for a wish of the command line."""
    seen: list[str] = []

    def looked(record):
        seen.append(record.name)
        return cancel_request(record)

    monkeypatch.setattr(cancel_watch, "cancel_request", looked)
    return seen


def test_a_wish_of_the_command_line_is_seen_at_once_and_its_absence_costs_little(site, monkeypatch):
    looks = _looks(monkeypatch)
    records = [site.task(f"t{number}") for number in range(3)]
    site.run_until(lambda: all(site.is_in(Phase.SUBMITTED, record.task_id)() for record in records))
    site.run_for(30)
    # Each when it was new, and all once, because nobody knew better.
    assert len(looks) <= 2 * len(records)
    request_cancel(records[1].path, who="ada@login1", at="2026-01-01T00:00:00Z")
    site.turn()
    site.run_for(5)
    assert records[1].path.name in looks[-3:]
    assert site.shown("t1").status == CANCELED
    assert "ada@login1" in "".join(site.shown("t1").log)
    assert {site.shown("t0").status, site.shown("t2").status} == {JobStatus.RUNNING}


def test_a_wish_whose_news_did_not_come_through_is_seen_within_a_minute(site):
    record = site.task()
    site.run_until(site.is_in(Phase.SUBMITTED), steps_slurm=False)
    site.run_for(1)
    (record.path / FILE_NAME).write_text('{"who": "ada"}', encoding="utf-8")
    site.run_for(62)
    assert site.shown().status == CANCELED


def test_a_wish_that_was_there_before_the_worker_had_the_job_is_seen_at_once(site):
    site.task("t0")
    site.run_until(site.is_in(Phase.SUBMITTED, "t0"), steps_slurm=False)
    site.run_for(1)
    late = site.task("t1")
    (late.path / FILE_NAME).write_text('{"who": "ada"}', encoding="utf-8")
    site.run_for(3)
    assert site.shown("t1").status == CANCELED
