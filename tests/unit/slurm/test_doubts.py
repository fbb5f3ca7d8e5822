"""Slurm jobs that start again, surface late or die while Girder is slow; messages that are nonsense."""

from __future__ import annotations

import json

import pytest

from girder_worker_slurm.celery_worker.result import CeleryResults
from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
from girder_worker_slurm.errors import GirderUnreachable
from girder_worker_slurm.girder.job_updates import AccessRefused, JobUpdates
from girder_worker_slurm.job.state import GirderJob
from girder_worker_slurm.job.submit_turns import SubmitRules
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.fake_girder import GirderJobOfFake
from tests.unit.slurm.site import broker_message, message_of
from tests.unit.slurm.test_intake import Bench as IntakeBench

ENDLESS = FakeProgram(is_endless=True)
RUN = "slicer_cli_web.girder_worker_plugin.direct_docker_run.run"


def log_of(site) -> str:
    return "".join(site.shown().log)


def running(site) -> str:
    """An endless job that has started; returns its Slurm job id."""
    site.cluster.default_program = ENDLESS
    site.task()
    site.run_until(lambda: site.state().started is not None)
    return site.state().slurm_job_id


def put_back(site, job_id) -> None:
    job = site.cluster.jobs[job_id]
    job.state, job.restarts, job.has_run = "PENDING", 1, False


def allow_submits(site, number) -> None:
    site.supervisor._submits._rules = SubmitRules(max_submitted=number)


class SlowGirder:
    """The pool for Girder, in which an update takes some seconds."""

    def __init__(self, clock, seconds) -> None:
        self._clock, self._seconds, self._waiting = clock, seconds, []

    def submit(self, work, *arguments, user="") -> None:
        del user
        if work.__name__ == "_flush":
            self._waiting.append((self._clock.monotonic() + self._seconds, work, arguments))
        else:
            work(*arguments)

    def let_time_pass(self) -> None:
        now = self._clock.monotonic()
        due = [one for one in self._waiting if one[0] <= now]
        self._waiting = [one for one in self._waiting if one[0] > now]
        for _, work, arguments in due:
            work(*arguments)


# -- jobs that die


@pytest.mark.parametrize("update_seconds", [0.0, 0.6, 1.1])
def test_a_job_that_died_without_a_word_is_judged_although_girder_is_slow(site, update_seconds):
    """Its moment came while an update was under way, and never again: RUNNING in Girder until the next restart."""
    pool = site.supervisor._pools["girder"] = SlowGirder(site.clock, update_seconds)

    def turns(seconds):
        until = site.clock.monotonic() + seconds
        while site.clock.monotonic() < until and site.supervisor.live_count:
            pool.let_time_pass()
            site.turn()
            site.cluster.step()

    site.cluster.default_program = ENDLESS
    site.task()
    turns(20)
    assert site.state().started is not None
    with (site.runs.path(site.state().token) / "output.log").open("ab") as log:
        log.writelines(
            b"line %d of a talkative program that somebody kills\n" % number for number in range(400_000)
        )
    site.cluster.end(site.state().slurm_job_id, "FAILED", signal=9)
    turns(600)
    assert site.supervisor.live_count == 0
    assert site.shown().status == 4


# -- jobs that Slurm starts again


def test_a_requeued_job_whose_program_ended_with_0_when_asked_to_is_no_success(site):
    """Slurm's COMPLETED is that of the second start, which the claim turned away."""
    job_id = running(site)
    site.cluster.finish(job_id, exit_code=0, cause="TERM")
    put_back(site, job_id)
    site.cluster.start(job_id)
    assert site.cluster.jobs[job_id].state == "COMPLETED"
    site.run_to_the_end()
    assert (site.shown().status, site.state().verdict.code) == (4, "requeued")


@pytest.mark.parametrize("cause", ["TERM", "INT", "XCPU"])
def test_a_program_that_ends_with_0_because_it_was_asked_to_is_no_success(site, cause):
    job_id = running(site)
    site.cluster.finish(job_id, exit_code=0, cause=cause)
    site.run_to_the_end()
    assert (site.shown().status, site.state().verdict.code) == (4, "ended_by_signal")


@pytest.mark.parametrize("is_remembered", [True, False])
def test_a_program_that_was_only_warned_is_a_success(site, is_remembered):
    """Sites warn before the time limit with USR1, which is no request to end."""
    job_id = running(site)
    site.cluster.finish(job_id, exit_code=0, cause="USR1")
    if not is_remembered:
        site.cluster.forget(job_id)
    site.run_to_the_end()
    assert site.shown().status == 3


def test_a_job_started_again_after_its_node_died_says_so(site):
    job_id = running(site)
    put_back(site, job_id)
    site.cluster.start(job_id)
    site.run_to_the_end()
    assert site.state().verdict.code == "requeued"
    assert "node failed" in log_of(site)


def test_a_job_put_back_without_a_word_does_not_wait_for_ever(site):
    job_id = running(site)
    put_back(site, job_id)
    site.cluster.jobs[job_id].is_held = True
    site.run_to_the_end(seconds=120)
    assert site.state().verdict.code == "requeued"
    assert site.cluster.jobs[job_id].state == "CANCELLED"


def test_one_listing_that_is_older_than_the_start_puts_nothing_back(site):
    site.cluster.default_program = ENDLESS
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    old = site.cluster.snapshot()
    site.cluster.start(site.state().slurm_job_id)
    site.run_until(lambda: site.state().started is not None)
    site.supervisor._queue._found.put(old)
    site.run_for(60)
    assert site.state().verdict is None


# -- submissions that surface late


def hidden_submission(site) -> str:
    """The answer of sbatch is lost and the job not listed, so it is given up for lost; then it surfaces and runs."""
    site.cluster.lose_answer_of_next_submit(is_taken=True)
    site.cluster.default_program = ENDLESS
    site.task()
    site.run_until(lambda: bool(site.cluster.jobs), steps_slurm=False)
    hidden = dict(site.cluster.jobs)
    site.cluster.jobs.clear()
    allow_submits(site, 0)
    site.run_until(lambda: "lost" in site.entries(), steps_slurm=False)
    site.cluster.jobs.update(hidden)
    (job_id,) = hidden
    site.cluster.start(job_id)
    site.run_for(5)
    assert site.state().started is not None
    return job_id


def test_a_cancel_before_the_next_submission_ends_the_one_that_surfaced(site):
    job_id = hidden_submission(site)
    site.revoked.add("t1")
    site.run_for(60)
    assert site.cluster.jobs[job_id].state == "CANCELLED"
    assert site.shown().status == 5


def test_a_submission_that_surfaced_is_not_made_again(site):
    job_id = hidden_submission(site)
    allow_submits(site, 10)
    site.run_for(30)
    assert site.state().slurm_job_id == job_id
    assert len(site.calls("submit")) == 1
    site.cluster.finish(job_id)
    site.run_to_the_end()
    assert site.shown().status == 3


def test_the_copy_that_runs_counts_when_slurm_has_forgotten_the_other(site):
    site.cluster.default_program = ENDLESS
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    first = site.state().slurm_job_id
    twin = site.cluster.submit(site.cluster.jobs[first].submission)
    site.cluster.start(twin)
    site.cluster.forget(first)
    site.run_for(100)
    assert site.state().verdict is None
    assert site.state().slurm_job_id == twin
    site.cluster.finish(twin)
    site.run_to_the_end()
    assert site.shown().status == 3


@pytest.mark.fault("job id given out again", phases=("submitted", "pending"))
@pytest.mark.parametrize("steps", [0, 3])
def test_a_cancel_does_not_reach_the_job_that_got_the_id_of_a_lost_one(site, steps):
    site.task("t1")
    site.run_until(lambda: site.entries("t1")[-1] == "submitted", steps_slurm=False)
    site.cluster.crash(site.state("t1").slurm_job_id)
    site.task("t2")
    site.run_until(lambda: site.entries("t2")[-1] == "submitted", steps_slurm=False)
    assert site.state("t1").slurm_job_id == site.state("t2").slurm_job_id
    site.run_for(steps, steps_slurm=False)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert (site.shown("t1").status, site.shown("t2").status) == (5, 3)


def test_a_job_cancelled_while_it_waited_says_who_did_it(site):
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    site.cluster.cancel([site.state().token])
    site.run_to_the_end()
    assert site.state().verdict.code == "cancelled_in_slurm"


def test_the_order_to_cancel_a_held_job_is_given_until_it_arrives(site):
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    job_id = site.state().slurm_job_id
    site.cluster.jobs[job_id].is_held = True
    site.cluster.end(job_id, "PENDING", reason="JobHoldMaxRequeue")
    listing = site.cluster.snapshot()
    site.cluster.is_unreachable = True
    site.supervisor._queue._found.put(listing)
    site.run_until(lambda: site.entries()[-1] == "reported", seconds=60)
    assert site.cluster.jobs[job_id].state == "PENDING"
    site.cluster.is_unreachable = False
    site.run_to_the_end()
    assert site.cluster.jobs[job_id].state == "CANCELLED"


@pytest.mark.fault("run directory read-only on the node", phases=("running",))
def test_a_run_directory_that_cannot_be_written_is_not_the_fault_of_the_analysis(site):
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    job = site.cluster.jobs[site.state().slurm_job_id]
    job.state = "RUNNING"
    site.cluster._event(job, "refused", why="unwritable")
    job.state, job.exit_code = "FAILED", 73
    site.run_to_the_end()
    assert "could not write into its run directory" in log_of(site)


# -- nonsense in messages


@pytest.mark.parametrize(
    ("argument", "words"),
    [("a\0b", "NUL"), ("a\ud800b", "no valid text"), ("y" * 140_000, "140000 bytes")],
)
def test_an_argument_that_no_program_can_take_is_named(site, argument, words):
    site.task(arguments=(argument,))
    site.run_to_the_end()
    assert site.state().verdict.code == "not_supported"
    assert words in site.state().verdict.sentence
    assert len(site.state().verdict.sentence) < 300


def test_the_longest_argument_that_linux_takes_is_taken(site):
    site.task(arguments=("y" * 131_071,))
    site.run_to_the_end()
    assert site.shown().status == 3


@pytest.mark.parametrize("headers", [["Girder-Token"], "token", 5])
def test_a_specification_of_the_girder_job_that_is_nonsense_keeps_no_record_for_ever(site, headers):
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    message = message_of("t1", image="image:1", container_args=[], pull_image=False)
    message["headers"]["jobInfoSpec"] = {"url": "http://girder.test/api/v1/job/job-t1", "headers": headers}
    Record.create(site.root.records, message, worker_id="w1", at=0.0)
    site.restart()
    site.run_to_the_end(seconds=3600)


def test_an_unknown_task_with_a_nonsense_specification_is_kept(site):
    kept = UnhandledMessages(site.root, site.girder, site.clock, lambda work: work())
    spec = {"url": "http://girder.test/api/v1/job/1", "headers": ["a"]}
    message = broker_message([[], {}, {}], headers={"id": "x", "task": "nosuch", "jobInfoSpec": spec})
    acknowledged = []
    message.ack = lambda: acknowledged.append(True)
    kept.unknown_task(message)
    assert acknowledged
    assert (site.root.unhandled / "x" / "reason.txt").exists()


def takes_nothing() -> None:
    """Celery makes no task of a lambda."""


@pytest.mark.parametrize(
    "embed",
    [{"errbacks": 7}, {"callbacks": 7}, {"chain": 5}, {"errbacks": ["x"]}, {"callbacks": [{"task": None}]}],
)
def test_links_that_are_nonsense_keep_no_record_for_ever(site, embed):
    results = CeleryResults(site.app)
    if RUN not in site.app.tasks:
        site.app.task(name=RUN, shared=False)(takes_nothing)
    site.results.success, site.results.failure, site.results.revoked = (
        results.success,
        results.failure,
        results.revoked,
    )
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    message = message_of("t1", image="image:1", container_args=[], pull_image=False)
    message["body"] = json.dumps([[], {"image": "image:1", "container_args": [], "pull_image": False}, embed])
    Record.create(site.root.records, message, worker_id="w1", at=0.0)
    site.restart()
    site.run_to_the_end(seconds=3600)
    assert site.shown().status in (3, 4)


@pytest.mark.parametrize("url", ["5", "not a url", "http://", "ftp://x/y"])
def test_an_address_that_no_request_can_be_made_with_is_not_tried_for_ever(url):
    with pytest.raises(AccessRefused, match="cannot be asked"):
        JobUpdates().update(GirderJob(url, "t"))


@pytest.mark.parametrize("token", ["a\nb", "ü€"])
def test_a_token_that_no_header_can_carry_is_not_tried_for_ever(token):
    with pytest.raises(AccessRefused, match="cannot be asked"):
        JobUpdates().update(GirderJob("http://127.0.0.1:1/job/x", token))


def test_a_proxy_with_a_wrong_address_is_no_fault_of_the_job(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(GirderUnreachable):
        JobUpdates().update(GirderJob("http://girder.test/job/x", "t"))


def test_a_task_without_an_id_is_kept_like_any_broken_message(tmp_path):
    bench = IntakeBench(tmp_path)
    unhandled = UnhandledMessages(bench.root, None, None, lambda work: work())
    message = broker_message([[], {}, {}], headers={"task": RUN})
    message.acknowledged = False
    message.ack = lambda: bench.seen.append("ack")
    unhandled.guarded(lambda message: bench.intake.take(message, message.ack, message.ack))(message)
    bench.work()
    (kept,) = bench.root.unhandled.iterdir()
    assert "no id" in (kept / "reason.txt").read_text()
    assert bench.seen == ["ack"]
