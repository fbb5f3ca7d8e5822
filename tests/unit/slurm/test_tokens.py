"""Girder's tokens live seven days: who may outlive them is warned, what they no longer carry is kept and brought later."""

from __future__ import annotations

import json
import logging
import math

import jsonpickle
import pytest
from girder_client import GirderClient
from girder_worker.docker.transforms import VolumePath
from girder_worker.docker.transforms.girder import GirderUploadVolumePathToFolder

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.errors import NothingOwed, OutputRefused
from girder_worker_slurm.girder.job_updates import AccessRefused
from girder_worker_slurm.girder.token_life import MARGIN_SECONDS, TOKEN_SECONDS, outlives_tokens
from girder_worker_slurm.job.late_delivery import LateDelivery
from girder_worker_slurm.job.retention import Retention
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.fake_girder import GirderJobOfFake
from tests.unit.slurm.http_girder import Mishap, http_girder
from tests.unit.slurm.site import Site, message_of

DAY = 86400.0
STALE_SECONDS = 7 * DAY


@pytest.fixture
def girder():
    with http_girder() as girder:
        yield girder


@pytest.mark.parametrize(
    ("left", "minutes", "is_outlived"),
    [
        (7 * DAY, 60, False),
        (7 * DAY, 7 * 1440, True),
        (7 * DAY, (7 * DAY - MARGIN_SECONDS) / 60, False),
        (7 * DAY, None, False),
        (7 * DAY, math.inf, False),
        (DAY - 1, None, True),
        (3600, 30, True),
    ],
)
def test_a_job_outlives_its_tokens_with_its_limit_and_a_margin_or_if_they_end_soon(
    left, minutes, is_outlived
):
    assert outlives_tokens(1000 + left, 1000, minutes) is is_outlived


def test_an_end_that_is_not_known_is_no_reason_to_warn():
    assert not outlives_tokens(0.0, 1000, 10**6)


def _task(site, *, age=0.0):
    site.girder.jobs["job-t1"] = GirderJobOfFake(created_at=site.clock.now() - age)
    site.girder.tokens_end_at = site.clock.now() - age + TOKEN_SECONDS
    site.task()


def test_a_time_limit_beyond_the_life_of_the_tokens_is_told_in_the_jobs_log(site):
    site.submit_options = (("time", "10-00:00:00"),)
    site.restart()
    _task(site)
    site.run_to_the_end()
    assert site.shown().text.count("girder-slurm retry-upload job-t1") == 1
    assert "7.0 days from now" in site.shown().text
    assert site.shown().status == 3


def test_an_ordinary_job_is_not_warned_and_costs_no_question(site):
    site.submit_options = (("time", "4:00:00"),)
    site.restart()
    _task(site)
    site.run_to_the_end()
    assert "retry-upload" not in site.shown().text
    assert site.girder.token_questions == 0


def test_tokens_that_girder_made_to_live_longer_are_no_reason_to_warn(site):
    site.submit_options = (("time", "10-00:00:00"),)
    site.restart()
    _task(site)
    site.girder.tokens_end_at += 30 * DAY
    site.run_to_the_end()
    assert "retry-upload" not in site.shown().text


# -- Girder cancels what was not updated for a week


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.fault("Girder restarted after a week", phases=("pending", "running"))
def test_a_job_that_waits_or_runs_for_days_without_any_news_is_never_stale(site, starts):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(
        lambda: (
            site.state().phase is Phase.SUBMITTED
            and site.job().announced
            and site.job().started_shown is starts
        ),
        steps_slurm=starts,
    )
    ages = []
    for _ in range(6 * 24):
        site.clock.advance(3600.0 - 5)
        site.run_for(5)
        ages.append(site.clock.now() - site.shown().updated_at)
    assert max(ages) < DAY < STALE_SECONDS
    assert site.shown().status == 2


def test_a_job_that_waits_for_days_for_a_place_in_slurm_is_never_stale(tmp_path):
    site = Site(tmp_path, max_submitted=1)
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task("t1")
    site.task("t2")
    site.run_until(lambda: site.state("t2").phase is Phase.RENDERED and site.shown("t2").message)
    ages = []
    for _ in range(3 * 24):
        site.clock.advance(3600.0 - 5)
        site.run_for(5)
        ages.append(site.clock.now() - site.shown("t2").updated_at)
    assert max(ages) < DAY
    assert site.shown("t2").status == 1


# -- what Girder refuses in the end


def _with_output(site, girder, *, name="out.csv"):
    """A task whose output goes to a Girder that can refuse it."""
    client = GirderClient(apiUrl=girder.url)
    client.token = "old"
    hook = GirderUploadVolumePathToFolder(VolumePath(name), "folder1", gc=client)
    message = message_of(
        "t1",
        hooks=[json.loads(jsonpickle.encode(hook))],
        image="image:1",
        container_args=[],
        pull_image=False,
    )
    message["headers"].pop("girder_api_url")
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.girder_api_url = ""
    site.restart()
    record = Record.create(site.root.records, message, worker_id="w1", at=site.clock.now())
    site.supervisor.accept(record)
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    (site.runs.path(site.state().token) / "volume" / name).write_bytes(b"result")


def _end_well(site):
    (job,) = site.slurm_jobs()
    site.cluster.finish(job.slurm_job_id)
    site.run_to_the_end(seconds=1800)


def _late(site, **how):
    record = Record.load(site.root.ended / "t1", worker_id="girder-slurm")
    return LateDelivery(site.runs, record, token="new", updates=site.girder, **how)


@pytest.mark.fault("the job's tokens expired", phases=("outputs uploading", "status reporting"))
def test_outputs_that_an_expired_token_cannot_bring_are_kept_and_brought_later(site, girder, caplog):
    _with_output(site, girder)
    site.girder.refuses_access = True
    with caplog.at_level(logging.WARNING):
        _end_well(site)
    state = site.state()
    kept = site.runs.path(state.token) / "volume" / "out.csv"
    assert state.owes_outputs
    assert state.is_untold
    assert kept.read_bytes() == b"result"
    assert str(kept.parent) in caplog.text
    assert "retry-upload t1" in caplog.text
    assert str(kept.parent) in state.verdict.sentence
    assert site.shown().status == 2

    site.girder.refuses_access = False
    girder.tokens.clear()
    done = _late(site).bring()
    assert girder.contents("out.csv") == [b"result"]
    assert girder.tokens == {"new"}
    assert (done.outputs, done.status, site.shown().status) == (1, 3, 3)
    assert "retry-upload" in site.shown().text
    assert not site.state().owes_outputs
    with pytest.raises(NothingOwed):
        _late(site)


@pytest.mark.fault("Girder refuses an output (quota, rights)", phases=("outputs uploading",))
def test_outputs_that_girder_refused_for_another_reason_can_be_brought_when_it_is_mended(site, girder):
    _with_output(site, girder)
    girder.mishaps.append(Mishap("POST", "/file", status=403))
    _end_well(site)
    assert site.shown().status == 4
    done = _late(site).bring()
    assert girder.contents("out.csv") == [b"result"]
    # Girder lets no job leave ERROR: its log says that the outputs came.
    assert (done.status, site.shown().status) == (4, 4)
    assert "retry-upload" in site.shown().text
    assert not site.state().owes_outputs


def test_a_token_that_may_not_either_changes_nothing_and_can_be_followed_by_another(site, girder):
    _with_output(site, girder)
    site.girder.refuses_access = True
    _end_well(site)
    with pytest.raises(AccessRefused):
        _late(site).bring()
    site.girder.refuses_access = False
    girder.mishaps.append(Mishap("POST", "/file", status=403))
    with pytest.raises(OutputRefused):
        _late(site).bring()
    assert site.shown().status == 2
    assert _late(site).bring().status == 3
    assert girder.contents("out.csv") == [b"result"]


def test_an_end_that_could_not_be_told_is_told_later_and_no_output_twice(site, girder):
    _with_output(site, girder)
    site.one_step_a_turn = True
    (job,) = site.slurm_jobs()
    site.cluster.finish(job.slurm_job_id)
    site.run_until(lambda: site.state().phase is Phase.DELIVERED)
    site.girder.refuses_access = True
    site.run_to_the_end()
    assert girder.contents("out.csv") == [b"result"]
    assert site.shown().status == 2
    site.girder.refuses_access = False
    assert _late(site).bring().status == 3
    assert girder.contents("out.csv") == [b"result"]
    assert "completed" in site.shown().text


def test_a_job_that_girder_has_all_of_has_nothing_to_bring(site):
    site.task()
    site.run_to_the_end()
    with pytest.raises(NothingOwed, match="has all"):
        _late(site)


@pytest.mark.fault("outputs deleted under the worker", phases=("outputs uploading",))
def test_outputs_that_were_deleted_under_the_worker_end_the_job_once(site, girder):
    """deliver() raised OutputRefused again and again for a volume that is gone, also after that verdict."""
    _with_output(site, girder)
    volume = site.runs.path(site.state().token) / "volume"
    (volume / "out.csv").unlink()
    volume.rmdir()
    _end_well(site)
    assert site.shown().status == 4
    assert site.entries().count("verdict") == 2
    assert site.state().verdict.code == "output_refused"


def test_outputs_that_were_never_brought_are_not_removed_without_a_word(site, girder, caplog):
    _with_output(site, girder)
    site.girder.refuses_access = True
    _end_well(site)
    clock = FakeClock()
    clock.advance((site.root.ended / "t1/state.jsonl").stat().st_mtime - clock.now() + 8 * DAY)
    retention = Retention(site.root, lambda _: site.runs, clock, keep_days=7, keep_failed_days=30)
    assert retention.remove_old() == 0
    clock.advance(23 * DAY)
    with caplog.at_level(logging.WARNING):
        assert retention.remove_old() == 1
    assert "which Girder never took, are removed after 30 days" in caplog.text
