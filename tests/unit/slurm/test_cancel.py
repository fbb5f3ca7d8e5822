"""A cancel in each phase of a job: nothing starts any more, what runs is ended, and what has ended stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from girder_worker_singularity.errors import RegistryUnreachable
from girder_worker_slurm.cli.job_view import state_word
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.job import cancel_watch
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.records.cancel_request import FILE_NAME, cancel_request, request_cancel
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.mapped_users import MAPPING
from tests.unit.slurm.running_jobs import running

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


def test_a_job_that_never_started_is_not_killed_but_cancelled_however_late(site):
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    site.cluster.is_unreachable = True
    site.revoked.add("t1")
    site.run_for(120)
    site.cluster.is_unreachable = False
    site.run_to_the_end(steps_slurm=False)
    assert not site.calls("kill")
    assert site.shown().status == 5


def test_a_job_that_a_dead_node_keeps_for_hours_is_cancelled_less_and_less_often(site):
    """Every twenty seconds, for each such job: with scancel as many listings of the whole queue."""
    (job,) = running(site)
    site.cluster.obeys_term = False
    site.cluster._cancel = lambda *_, **__: None
    site.revoked.add(job)
    site.run_for(3600)
    assert 10 <= len(site.calls("cancel")) + len(site.calls("kill")) <= 30


def test_a_running_job_is_cancelled_although_its_claim_cannot_be_read_or_written(site):
    """The claim was taken first: a user over quota, or whose files cannot be reached, kept a job that nobody wanted."""
    site.users = MAPPING
    site.restart()
    (job,) = running(site)
    site.unreachable.add("daemon")
    site.revoked.add(job)
    site.run_for(5)
    assert site.calls("cancel") == [(site.state(job).token,)]


def test_a_cancel_that_could_not_reach_slurm_for_long_does_not_begin_with_a_kill(site):
    """The minute until the kill ran while Slurm was away: the job had no time to end itself, nor the site's commands after it."""
    (job,) = running(site)
    site.cluster.is_unreachable = True
    site.revoked.add(job)
    site.run_for(120)
    assert not site.calls("kill")
    site.cluster.is_unreachable = False
    site.run_to_the_end(seconds=120)
    assert not site.calls("kill")
    assert site.shown(job).status == CANCELED


@pytest.mark.fault("disk full", phases=("pending",))
def test_a_waiting_job_is_cancelled_in_slurm_although_its_claim_cannot_be_written(site):
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)

    def claim(token, why):
        raise OSError(errno.EDQUOT, "quota exceeded")

    site.runs.claim = claim
    site.revoked.add("t1")
    site.run_for(5)
    assert site.calls("cancel")
    del site.runs.claim
    site.run_to_the_end()
    assert site.shown().status == 5


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


def test_jobs_that_are_cancelled_together_are_one_order(site):
    """One scancel for each, every twenty seconds, until the last of them has ended."""
    names = running(site, 40)
    site.revoked.update(names)
    site.run_to_the_end()
    assert {site.shown(name).status for name in names} == {5}
    assert sum(len(tokens) for tokens in site.calls("cancel")) == 40
    assert len(site.calls("cancel")) <= 2


def test_waiting_jobs_that_are_cancelled_together_are_one_order_and_never_run(site):
    names = [f"t{number}" for number in range(20)]
    for name in names:
        site.task(name)
    site.run_until(lambda: all(site.entries(name)[-1] == "submitted" for name in names), steps_slurm=False)
    site.revoked.update(names)
    site.run_to_the_end()
    assert {site.state(name).verdict.code for name in names} == {"cancelled"}
    assert not any(job.has_run for job in site.cluster.jobs.values())
    assert len(site.calls("cancel")) == 1


def test_cancels_that_do_not_reach_slurm_are_sent_again_for_each_job(site):
    names = running(site, 5)
    site.cluster.is_unreachable = True
    site.revoked.update(names)
    site.run_for(5)
    site.cluster.is_unreachable = False
    site.run_to_the_end(seconds=120)
    assert {site.shown(name).status for name in names} == {5}


def test_a_stop_does_not_wait_for_cancels_that_were_not_begun(site):
    (job,) = running(site)
    live = site.job(job)
    live.is_busy = True
    site.supervisor._to_cancel[""] = [live]
    begun = site.clock.monotonic()
    site.supervisor.stop()
    assert site.clock.monotonic() == begun
    assert not live.is_busy


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


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_that_cannot_be_looked_for_is_no_wish(site, monkeypatch, number):
    """A worker without a file left to open, or whose file system stumbled, cancelled all its jobs."""
    names = running(site, 3)
    read_text = Path.read_text

    def stumbling(path, *arguments, **how):
        if path.name == FILE_NAME:
            raise OSError(number, os.strerror(number), str(path))
        return read_text(path, *arguments, **how)

    monkeypatch.setattr(Path, "read_text", stumbling)
    site.run_for(150)
    assert {site.shown(name).status for name in names} == {JobStatus.RUNNING}
    assert not site.calls("cancel")
    request_cancel(site.job(names[0]).record.path, who="ada@login1", at="2026-01-01T00:00:00Z")
    site.run_for(90)
    assert site.shown(names[0]).status == CANCELED


def test_a_cancel_that_is_met_when_the_end_is_told_is_in_the_record_too(site):
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(Phase.DELIVERED))
    site.shown().status = JobStatus.CANCELING
    site.run_to_the_end()
    assert site.shown().status == JobStatus.CANCELED
    assert [what for what, _, _ in site.results.sent] == ["revoked"]
    assert state_word(site.state()) == "canceled"


def test_a_cancel_after_the_end_has_come_to_girder_changes_nothing_in_the_record(site):
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(Phase.DELIVERED))
    site.girder.lost_answers = 1
    site.run_until(lambda: site.shown().status == JobStatus.SUCCESS)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert [what for what, _, _ in site.results.sent] == ["success"]
    assert state_word(site.state()) == "succeeded"
