"""What goes wrong around a worker on pretended surroundings, in each phase of a job."""

from __future__ import annotations

import errno
import io
import os

import pytest

from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.site import Site

PHASES = (Phase.ADMITTED, Phase.RENDERED, Phase.SUBMITTED, Phase.DECIDED, Phase.DELIVERED)
WEEK = 7 * 86400.0


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    site.cluster.default_program = FakeProgram(output=b"one\ntwo\n")
    return site


def _expect_once(site):
    assert site.shown().status == 3, site.shown().text
    assert site.shown().text.count("one\ntwo\n") == 1
    assert len(site.slurm_jobs()) == 1
    assert site.cluster.runs_of(site.state().token) == 1


@pytest.mark.fault(
    "clock jumps by a week, forward or back",
    phases=("inputs staging", "intent written", "submitted", "pending", "ended", "outputs uploading"),
)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name.lower())
@pytest.mark.parametrize("seconds", [WEEK, -WEEK], ids=["forward", "back"])
def test_a_clock_that_jumps_changes_nothing(site, phase, seconds):
    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(phase))
    site.clock.jump(seconds)
    site.run_to_the_end()
    _expect_once(site)


@pytest.mark.fault("clock jumps by a week, forward or back", phases=("running",))
@pytest.mark.parametrize("seconds", [WEEK, -WEEK], ids=["forward", "back"])
def test_a_clock_that_jumps_during_a_run_neither_ends_it_nor_hides_that_it_vanished(site, seconds):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.clock.jump(seconds)
    site.run_for(120, steps_slurm=True)
    assert site.state().phase is Phase.SUBMITTED
    (job,) = site.slurm_jobs()
    site.cluster.forget(job.slurm_job_id)
    site.run_to_the_end(seconds=600, steps_slurm=False)
    assert site.state().verdict.code == "vanished"


@pytest.mark.fault("events seen late (caching file system)", phases=("pending", "running", "ended"))
@pytest.mark.parametrize("exit_code", [0, 3])
def test_what_a_job_says_is_believed_that_is_seen_forty_seconds_late(tmp_path, exit_code):
    """Slurm's own word took a success for an error, if its script's was not seen within 5 to 10 seconds."""
    site = Site(tmp_path)
    site.cluster.default_program = FakeProgram(exit_code=exit_code)
    site.task()
    spool, late = site.runs.spool, tmp_path / "late"
    late.mkdir()
    began: dict[str, float] = {}

    def delayed():
        """The node's files reach this side of the file system after forty seconds."""
        for path in spool.iterdir():
            if path.name not in began:
                began[path.name] = site.clock.monotonic()
                path.rename(late / path.name)
        for path in late.iterdir():
            if site.clock.monotonic() - began[path.name] >= 40:
                path.rename(spool / path.name)
        return site.supervisor.live_count == 0

    site.run_until(delayed)
    assert site.state().verdict.code == ("failed" if exit_code else "completed"), site.state().verdict
    assert len(began) == 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase < Phase.REPORTED])
def test_no_file_that_can_be_opened_for_a_while_costs_time_alone(site, monkeypatch, phase, number):
    def failing(path, *_arguments, **_how):
        raise OSError(number, os.strerror(number), str(path))

    site.one_step_a_turn = True
    site.task()
    site.run_until(site.is_in(phase), steps_slurm=phase >= Phase.DECIDED)
    with monkeypatch.context() as trouble:
        for module, name in ((io, "open"), (os, "open"), (os, "scandir"), (os, "listdir")):
            trouble.setattr(module, name, failing)
        site.run_for(90)
    site.run_to_the_end(seconds=400)
    _expect_once(site)
