"""How often Slurm is asked and told something: what docs/reference/cluster-load.md promises to those who look after it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from girder_worker_slurm.cluster.interface import Snapshot
from girder_worker_slurm.job.queue_watch import QueueRules, QueueWatch
from girder_worker_slurm.job.state import Outcome
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.running_jobs import running
from tests.unit.slurm.site import Site


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_job_that_ends_by_itself_costs_one_submission_and_no_question(site, exit_code):
    site.cluster.default_program = FakeProgram(exit_code=exit_code)
    site.task()
    site.run_to_the_end()
    assert [method for method, _ in site.cluster.calls if method != "snapshot"] == ["submit"]


@pytest.mark.parametrize("word", ["NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "FAILED"])
def test_a_job_that_dies_without_a_word_costs_two_questions(site, word):
    """A node takes many with it: once to see that the job has ended, once more when its own word has had its time."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.end(site.state().slurm_job_id, word)
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.ERROR
    assert len(site.calls("describe")) == 2


def test_a_job_that_died_without_a_word_costs_few_questions(site):
    """Slurm was asked twice a second for as long as the word was waited for."""
    (job,) = running(site)
    site.cluster.end(site.state(job).slurm_job_id, "NODE_FAIL")
    site.run_to_the_end(steps_slurm=False)
    assert site.state(job).verdict.code == "node_fail"
    assert len(site.calls("describe")) <= 2


def test_a_log_that_is_seen_late_costs_no_question_more(site):
    """On a caching mount it may take the whole `event_grace_seconds`, of each job that Slurm ended."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    state = site.state()
    log = site.runs.path(state.token) / "output.log"
    log.write_bytes(b"as far as it is seen\n and no further\n")
    site.cluster.finish(state.slurm_job_id, exit_code=143, cause="TERM")
    site.cluster.end(state.slurm_job_id, "TIMEOUT")
    log.write_bytes(b"as far as it is seen\n")
    site.run_to_the_end()
    assert site.state().verdict.code == "timeout"
    assert len(site.calls("describe")) == 1


@pytest.mark.parametrize(("takes", "waits"), [(0.1, 1.0), (20.0, 20.0)])
def test_a_second_listing_leaves_a_slow_controller_as_much_time_as_the_first_took(takes, waits):
    """It comes before the usual pause is over, when a job is missing in the first."""
    waited = []
    stopping = SimpleNamespace(is_set=lambda: bool(waited), wait=waited.append)

    def snapshot():
        watch._look_soon()
        return Snapshot((), 0.0, takes)

    watch = QueueWatch(
        SimpleNamespace(stopping=stopping, cluster=SimpleNamespace(snapshot=snapshot)),
        QueueRules("gw-", 15.0, 5.0),
        has_jobs_in_slurm=lambda: True,
        knows_token=lambda _token: True,
        later=lambda _job, _seconds: None,
        in_pool=lambda _work: None,
        wake=lambda: None,
    )
    watch.run()
    assert waited == [waits]
