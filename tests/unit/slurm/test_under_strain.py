"""What a worker does under strain: thousands of cancels at once, full disks, a Slurm or Girder that hangs, hostile files."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import threading
import time
from dataclasses import fields
from types import SimpleNamespace

import jsonpickle
import pytest
import requests
from girder_client import GirderClient
from girder_worker.docker.transforms import VolumePath
from girder_worker.docker.transforms.girder import GirderUploadVolumePathJobArtifact

from girder_worker_singularity.command_runner import (
    CommandError,
    CommandNotStarted,
    LocalCommandRunner,
)
from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm import worker
from girder_worker_slurm.celery_worker.result import CeleryResults
from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.direct_cluster import DirectCluster
from girder_worker_slurm.cluster.frames import PROTOCOL, frame
from girder_worker_slurm.cluster.interface import QueueRow, SlurmJobId, Submission
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.cluster.tree_transfer import left_entries
from girder_worker_slurm.cluster.user_run_files import UserRunFiles, UserUnreachable
from girder_worker_slurm.errors import (
    ClusterUnreachable,
    GirderUnreachable,
    NotSupported,
    OutputRefused,
    OwnershipLost,
    SubmitRejected,
    SubmitUnsure,
    Unreachable,
)
from girder_worker_slurm.girder.job_updates import JobStatus, JobUpdates
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.girder.outputs import make_safe
from girder_worker_slurm.girder.server_plugin import ServerPlugin
from girder_worker_slurm.job.accounting import Accounting
from girder_worker_slurm.job.preparation import Preparation
from girder_worker_slurm.job.retention import Retention
from girder_worker_slurm.job.state import GirderJob, GrowingSet, JobState, Outcome, apply
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.script.render import JobScript, forbidden_head_option
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.http_girder import Mishap, http_girder
from tests.unit.slurm.site import GirderJobOfFake, Site, broker_message, message_of
from tests.unit.slurm.test_command_cluster import SUBMISSION
from tests.unit.slurm.test_intake import Bench as IntakeBench
from tests.unit.slurm.test_log_feed import Bench as FeedBench
from tests.unit.slurm.test_outputs import Bench as OutputBench
from tests.unit.slurm.test_supervisor_threads import wait_until
from tests.unit.slurm.test_unix_user_jobs import MAPPING


def girder_client():
    client = GirderClient(apiUrl="http://girder.invalid/api/v1")
    client.token = "t"
    return client


def hooks_of(*hooks):
    """As a message has them."""
    return [json.loads(jsonpickle.encode(hook)) for hook in hooks]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def running(site, count=1):
    """So many jobs whose containers run until they are told to end."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    names = [f"t{number}" for number in range(1, count + 1)]
    for name in names:
        site.task(name)
    site.run_until(lambda: all(site.state(name).started is not None for name in names))
    return names


# -- events


@pytest.mark.parametrize("name", ["event", "self", "durable", "kind"])
def test_an_event_with_a_field_of_any_name_neither_stops_the_worker_nor_becomes_another_entry(site, name):
    """Fields become arguments of `Record.append`: `event` raised TypeError in the supervising thread, again and again."""
    (job,) = running(site)
    token, slurm_job_id = site.state(job).token, site.state(job).slurm_job_id
    nonce = (site.runs.path(token) / "nonce").read_text()
    words = {"token": token, "kind": "ended", "nonce": nonce, "slurm_job_id": slurm_job_id, "exit_code": 3}
    if name != "kind":
        words[name] = "verdict"
    (site.runs.spool / f"{token}.ended.{slurm_job_id}.0.json").write_text(json.dumps(words))
    site.cluster.default_program = FakeProgram()
    site.task("other")
    site.run_to_the_end()
    assert site.state(job).verdict.code == "failed"
    assert site.state("other").verdict.outcome is Outcome.SUCCESS


def test_an_unexpected_error_with_one_job_does_not_hold_up_the_others_or_forget_it(site, monkeypatch):
    """It ended the whole turn of the supervising thread, and the job was not looked at again."""
    (job,) = running(site)
    errors = [RuntimeError("a mistake of ours")]
    told = site.supervisor._events.record

    def record(live):
        if live.task_id == job and errors:
            raise errors.pop()
        told(live)

    monkeypatch.setattr(site.supervisor._events, "record", record)
    site.task("other")
    site.cluster.finish(site.state(job).slurm_job_id)
    site.turn()
    assert not errors
    site.cluster.default_program = FakeProgram()
    site.run_to_the_end(seconds=30)
    assert site.state(job).verdict.outcome is Outcome.SUCCESS


# -- the queue's own thread


@pytest.mark.parametrize(
    "error", [OSError(errno.EAGAIN, "no more processes"), RuntimeError("a mistake of ours")]
)
def test_the_thread_that_lists_the_queue_outlives_an_order_that_cannot_be_given(tmp_path, error):
    """Only `Unreachable` was caught around the orders that are given again: the thread ended, and nobody said so."""
    site = Site(tmp_path, event_seconds=0.01, poll_seconds=0.02)
    running(site)
    queue = site.supervisor._queue
    queue._uncancelled.put((["gw-test-gone"], ""))
    before, errors = site.cluster.cancel, [error]

    def cancel(tokens, **how):
        if errors:
            raise errors.pop()
        before(tokens, **how)

    site.cluster.cancel = cancel
    thread = threading.Thread(target=queue.run, daemon=True)
    thread.start()
    listings = len(site.calls("snapshot"))
    wait_until(lambda: len(site.calls("snapshot")) > listings, lambda: thread)
    site.supervisor._stop.set()
    queue.stop()
    thread.join(10)
    assert not thread.is_alive()


# -- cancels


def cluster_with(programs, *, per_second=1000.0, **options):
    runner, clock = FakeCommandRunner(programs), FakeClock()
    budget = CallBudget(per_second, clock)
    made = CommandCluster(runner, clock, budget, CommandOptions(user="alice", **options))
    return made, runner, budget


def test_many_names_are_cancelled_with_one_listing_and_few_orders():
    """`scancel --name` has the controller list the jobs of all users, for each name anew."""
    names = [f"gw-{number}" for number in range(500)]
    listing = "".join(f"{1000 + number}|RUNNING|None|alice|gw-{number}\n" for number in range(450))
    listing += "7|RUNNING|None|alice|not-ours\n8|RUNNING|None|mallory|gw-1\n9|COMPLETED|None|alice|gw-2\n"
    cluster, runner, _ = cluster_with({"squeue": FakeAnswer(stdout=listing), "scancel": FakeAnswer()})
    cluster.cancel(names)
    orders = [call.argv for call in runner.calls if call.argv[0] == "scancel"]
    assert [call.argv[0] for call in runner.calls].count("squeue") == 1
    assert len(orders) == 3
    assert sorted(word for argv in orders for word in argv[1:]) == [str(1000 + n) for n in range(450)]
    # An order by ids must not wait for a controller that comes back and gives them out again.
    assert {call.timeout_seconds for call in runner.calls if call.argv[0] == "scancel"} == {20.0}


def test_many_names_are_killed_the_same_way_and_names_that_nobody_has_are_no_order():
    cluster, runner, _ = cluster_with(
        {"squeue": FakeAnswer(stdout="1|RUNNING|None|alice|gw-3\n"), "scancel": FakeAnswer()}
    )
    cluster.cancel([f"gw-{number}" for number in range(10)], kill=True)
    assert runner.calls[-1].argv == ("scancel", "--signal=KILL", "--full", "1")
    cluster.cancel([f"gw-x{number}" for number in range(10)])
    assert [call.argv[0] for call in runner.calls] == ["squeue", "scancel", "squeue"]


def test_a_listing_that_fails_leaves_many_names_uncancelled():
    cluster, _, _ = cluster_with(
        {"squeue": FakeAnswer(1, stderr="Socket timed out"), "scancel": FakeAnswer()}
    )
    with pytest.raises(ClusterUnreachable):
        cluster.cancel([f"gw-{number}" for number in range(10)])


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


# -- questions to Slurm


def test_a_job_that_died_without_a_word_costs_few_questions(site):
    """Slurm was asked twice a second for as long as the word was waited for."""
    (job,) = running(site)
    site.cluster.end(site.state(job).slurm_job_id, "NODE_FAIL")
    site.run_to_the_end(steps_slurm=False)
    assert site.state(job).verdict.code == "node_fail"
    assert len(site.calls("describe")) <= 2


def test_a_word_that_comes_late_ends_the_wait_for_it_at_once(site):
    (job,) = running(site)
    slurm_job_id = site.state(job).slurm_job_id
    site.cluster.end(slurm_job_id, "FAILED")
    site.run_until(lambda: bool(site.calls("describe")), steps_slurm=False)
    site.cluster.finish(slurm_job_id)
    site.run_to_the_end(steps_slurm=False, seconds=1)
    assert site.state(job).verdict.outcome is Outcome.SUCCESS


def test_a_refusal_to_one_user_does_not_make_all_calls_slower():
    """Each refusal of sudo halved the calls of everybody, down to four a minute."""
    refusal = FakeAnswer(1, stderr="sudo: a password is required")
    cluster, _, budget = cluster_with({"scancel": refusal, "sudo": refusal}, per_second=10.0)
    for _ in range(5):
        with pytest.raises(ClusterUnreachable):
            cluster.cancel(["gw-1"])
    assert budget.calls_per_second == 10.0


def test_a_machine_without_room_for_one_more_process_has_not_submitted():
    """It was a mistake of ours, in the log with a trace, and the job was looked for in Slurm."""

    class Full(FakeCommandRunner):
        def run(self, argv, **_):
            raise CommandNotStarted(f"Cannot run {argv[0]!r}: Resource temporarily unavailable.")

    clock = FakeClock()
    cluster = CommandCluster(Full(), clock, CallBudget(10.0, clock), CommandOptions(user="alice"))
    for ask in (cluster.snapshot, lambda: cluster.submit(SUBMISSION), lambda: cluster.accounted(["1"])):
        with pytest.raises(ClusterUnreachable):
            ask()


def test_a_program_that_cannot_be_started_is_no_program_that_cannot_be_started_now(tmp_path):
    strange = tmp_path / "strange"
    strange.write_bytes(b"\x7fELF nonsense")
    strange.chmod(0o700)
    with pytest.raises(CommandError) as caught:
        LocalCommandRunner().run([str(strange)], timeout_seconds=5)
    assert not isinstance(caught.value, CommandNotStarted)


# -- two workers


def test_a_job_that_another_worker_has_taken_over_is_not_shown_any_more(site):
    """Log and progress were sent without a look at who owns the job: two workers sent the log of one."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    record = site.task()
    site.run_until(lambda: site.state().started is not None)
    other = Record.load(record.path, worker_id="w2")
    assert other.take_over()
    with (site.runs.path(site.state().token) / "output.log").open("ab") as log:
        log.write(b"more\n")
    before = site.girder.puts
    site.run_for(5)
    assert site.girder.puts == before
    assert site.supervisor.live_count == 0


# -- images


def test_a_step_that_is_tried_again_does_not_ask_the_registry_again(site):
    """The SIF was forgotten before the step had ended: with `always` each further try asked the registry."""
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    site.girder.settings = GirderUnreachable("Girder is away")
    message = message_of("t1", image="image:1", container_args=[], pull_image=True)
    record = Record.create(site.root.records, message, worker_id="w1", at=site.clock.now())
    site.supervisor.accept(site._mortal(record.path))
    site.run_for(60)
    site.girder.settings = {}
    site.run_to_the_end()
    assert site.images.made == [("image:1", "always")]


# -- a Girder that is away


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


@pytest.mark.fault("Girder away", phases=("outputs uploading",))
def test_a_404_of_a_proxy_does_not_make_an_upload_one_that_was_finished(tmp_path):
    """Girder forgets a finished upload; a proxy knows none at all while Girder is away: the output was never sent."""
    with http_girder() as girder:
        bench = OutputBench(tmp_path, girder)
        bench.write("out.csv")
        girder.mishaps.append(Mishap("POST", "/file/chunk", status=502))
        with pytest.raises(GirderUnreachable):
            bench.deliver(bench.to_folder("out.csv"))
        girder.mishaps.append(Mishap("GET", "/file/offset", status=404, body=b"404 page not found"))
        with contextlib.suppress(GirderUnreachable):
            bench.deliver(bench.to_folder("out.csv"))
        bench.deliver(bench.to_folder("out.csv"))
        assert girder.contents("out.csv") == [b"data"]


def test_an_upload_that_a_proxy_does_not_let_through_is_refused_for_good(tmp_path):
    with http_girder() as girder:
        bench = OutputBench(tmp_path, girder)
        bench.write("out.csv")
        girder.mishaps.append(Mishap("POST", "/file/chunk", status=413, body=b"<h1>Too large</h1>"))
        with pytest.raises(OutputRefused):
            bench.deliver(bench.to_folder("out.csv"))


class SlowPool:
    """A pool whose threads all wait for a Girder that does not answer."""

    def __init__(self):
        self.waiting = []

    def submit(self, work, *arguments, user=""):
        del user
        self.waiting.append((work, arguments))


def test_a_girder_that_does_not_answer_keeps_few_jobs_busy(site):
    """Twenty updates a second were begun, whatever became of those before: soon no job could be cancelled in Slurm."""
    names = running(site, 100)
    slow = site.supervisor._pools["girder"] = SlowPool()
    for name in names:
        with (site.runs.path(site.state(name).token) / "output.log").open("ab") as log:
            log.write(b"more\n")
    site.run_for(120)
    assert 0 < len(slow.waiting) <= 24
    assert sum(site.job(name).is_busy for name in names) <= 24


def test_updates_go_on_when_girder_answers_again(site):
    names = running(site, 60)
    slow, pool = SlowPool(), site.supervisor._pools["girder"]
    site.supervisor._pools["girder"] = slow
    for name in names:
        with (site.runs.path(site.state(name).token) / "output.log").open("ab") as log:
            log.write(b"more\n")
    site.run_for(30)
    site.supervisor._pools["girder"] = pool
    for work, arguments in slow.waiting:
        work(*arguments)
    site.run_for(30)
    assert all("more" in site.shown(name).text for name in names)
    assert site.supervisor._updates_under_way == 0


# -- logs


@pytest.mark.fault("disk full", phases=("running",))
def test_what_a_full_disk_left_of_a_piece_of_log_does_not_shift_what_follows(tmp_path):
    """The next piece stood behind it, and Girder got as many bytes from the wrong place."""
    feed = LogFeed(tmp_path, None, RunDirectories(tmp_path), limit_bytes=10**6)
    feed.note("first")
    with (tmp_path / "girder.log").open("ab") as log:
        log.write(b"half of someth")
    feed.note("second")
    assert feed.next_update().text == "first\nsecond\n"


def test_the_end_of_an_endless_log_is_read_without_all_before_it(tmp_path):
    """All of it was read at the end, by a thread that other jobs' ends wait for: 100 GB are an hour."""

    class Counting(RunDirectories):
        seen = 0

        def read_at(self, path, start, length):
            data = super().read_at(path, start, length)
            self.seen += len(data)
            return data

    output = tmp_path / "output.log"
    with output.open("wb") as log:
        log.write(b"the beginning\n" * 100_000)
        log.seek(50_000_000)
        log.write(b"the end\n")
    files = Counting(tmp_path)
    feed = LogFeed(tmp_path, output, files, limit_bytes=1_000_000)
    feed.read(final=True)
    assert files.seen < 3_000_000
    text = (tmp_path / "girder.log").read_text()
    assert text.startswith("the beginning\n")
    assert text.endswith("the end\n")
    assert "bytes are left out here" in text
    assert not feed.has_new_output()


# -- several workers on one root


def roots(tmp_path):
    pair = [JobsRoot(tmp_path / "jobs", name) for name in ("w1", "w2")]
    for root in pair:
        root.prepare()
    return pair


@pytest.mark.fault("two workers on one queue", phases=("running",))
def test_a_worker_that_looks_at_anothers_record_does_not_cut_off_what_is_being_written(tmp_path):
    """Taking over, and starting, loaded the records of all workers to be repaired: a half-written line was cut off."""
    mine, others = roots(tmp_path)
    record = Record.create(others.records, message_of("t1"), worker_id="w2", at=0.0)
    state = record.path / "state.jsonl"
    whole = state.read_bytes()
    state.write_bytes(whole + b'{"event": "subm')
    assert list(mine.own_records()) == []
    assert state.read_bytes() == whole + b'{"event": "subm'


@pytest.mark.fault("second worker takes over", phases=("outputs uploading",))
def test_a_record_is_read_after_it_was_taken_over(tmp_path, monkeypatch):
    """What its last owner wrote between the reading and the take-over was not known, and done a second time."""
    mine, _ = roots(tmp_path)
    Record.create(mine.records, message_of("t1"), worker_id="w1", at=0.0)
    frozen = Record.load(mine.records / "t1", worker_id="w1")
    take_over = Record.take_over

    def at_the_last_moment(record, mark=None):
        frozen.append("uploaded", key="0:out.csv")
        return take_over(record, mark)

    monkeypatch.setattr(Record, "take_over", at_the_last_moment)
    (taken,) = mine.own_records()
    assert taken.state.uploaded == {"0:out.csv"}
    with pytest.raises(OwnershipLost):
        frozen.append("uploaded", key="0:other.csv")


def test_a_record_whose_owner_a_power_cut_took_is_somebodys_in_the_end(tmp_path):
    """Without an owner file it was nobody's, and no worker looked at it again."""
    mine, _ = roots(tmp_path)
    record = Record.create(mine.records, message_of("t1"), worker_id="w1", at=0.0)
    (record.path / "owner.1").unlink()
    clock = FakeClock()
    taken = []
    for _ in range(30):
        taken += mine.orphaned_records(clock)
        clock.advance(5.0)
    assert [record.task_id for record in taken] == ["t1"]


# -- messages in, results out


def test_a_job_is_carried_although_its_message_cannot_be_acknowledged(tmp_path):
    """It was on disk and nobody's until the next start: the message that came again found its record."""
    bench = IntakeBench(tmp_path)

    def fail():
        raise RuntimeError("the event loop is gone")

    message = broker_message([[], {}, {}], headers={"id": "t1", "task": "x"})
    bench.intake.take(message, fail, fail)
    with contextlib.suppress(RuntimeError):
        bench.work()
    assert [record.task_id for record in bench.supervisor.accepted] == ["t1"]


def test_a_message_nested_too_deep_does_not_end_the_consumer(tmp_path):
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    unhandled = UnhandledMessages(root, None, FakeClock(), lambda _work: None)
    acknowledged = []
    message = broker_message([[], {}, {}], headers={"id": "t1", "task": "x"})
    message.acknowledged, message.ack = False, lambda: acknowledged.append(True)

    def receive(_message):
        raise RecursionError("maximum recursion depth exceeded")

    unhandled.guarded(receive)(message)
    assert acknowledged
    assert (root.unhandled / "t1" / "message.json").exists()


class Gone(Exception):
    """Redis has a ConnectionError of its own, which is no OSError."""


def test_a_result_backend_that_is_away_is_waited_for():
    """After eight tries in a minute the job was closed, and its caller, or the next task of its chain, waited for ever."""

    class Tasks:
        def __getitem__(self, name):
            raise errors.pop()

    app = SimpleNamespace(tasks=Tasks(), backend=SimpleNamespace(connection_errors=(Gone, KeyError)))
    errors = [Gone("Error 111 connecting to redis")]
    with pytest.raises(Unreachable):
        CeleryResults(app).success("x", "t1", None, [])
    errors = [KeyError("a mistake of ours")]
    with pytest.raises(KeyError):
        CeleryResults(app).success("x", "t1", None, [])


def test_messages_that_cannot_be_run_do_not_take_the_threads_that_end_jobs(tmp_path):
    """Each waited five minutes in one of the six threads for a Girder that was away."""
    site = Site(tmp_path)
    site.supervisor._pools = {}
    site.supervisor.start([])
    try:
        may_go, begun = threading.Event(), []
        for _ in range(20):
            site.supervisor.run_in_pool("unhandled", lambda: (begun.append(1), may_go.wait(10)))
        done = threading.Event()
        site.supervisor.run_in_pool("girder", done.set)
        assert done.wait(5)
        assert len(begun) <= 1
    finally:
        may_go.set()
        site.supervisor.stop()


# -- outputs


def test_a_hundred_thousand_outputs_cost_no_more_each_than_a_thousand():
    """Each entry copied what was known of all files before it."""
    state = JobState()
    for number in range(3000):
        state = apply(state, {"event": "upload", "key": f"0:{number}", "upload_id": "u"})
        state = apply(state, {"event": "upload_at", "key": f"0:{number}", "offset": 3})
        if number < 2999:
            state = apply(state, {"event": "uploaded", "key": f"0:{number}"})
    assert len(state.uploaded) == 2999
    assert dict(state.uploads) == {"0:2999": "u"}
    assert dict(state.upload_offsets) == {"0:2999": 3}


def test_outputs_that_cannot_be_read_for_good_end_the_job(site):
    """Files of a fakeroot's own users in another user's run directory: it was tried again for ever."""
    site.task(hooks=hooks_of(VolumePath("out.csv")))

    def outputs_place(token, check):
        del token, check
        raise PermissionError(errno.EPERM, "Operation not permitted", "volume/private")

    site.runs.outputs_place = outputs_place
    site.run_to_the_end(seconds=60)
    verdict = site.state().verdict
    assert (verdict.code, site.shown().status) == ("output_refused", JobStatus.ERROR)
    assert "volume/private" in verdict.sentence
    assert site.state().owes_outputs


def test_a_failed_job_whose_files_cannot_be_read_ends_for_its_own_reason(site):
    site.cluster.default_program = FakeProgram(exit_code=3)
    artifact = GirderUploadVolumePathJobArtifact(
        VolumePath("core"), upload_on_exception=True, gc=girder_client()
    )
    site.task(hooks=hooks_of(artifact))

    def outputs_place(token, check):
        del token, check
        raise PermissionError(errno.EPERM, "Operation not permitted", "volume/private")

    site.runs.outputs_place = outputs_place
    site.run_to_the_end(seconds=60)
    assert site.state().verdict.code == "failed"
    assert "An artifact could not be kept: The outputs cannot be read" in "".join(site.shown().log)


@pytest.mark.parametrize(
    ("exit_code", "hooks"),
    [
        (0, ()),
        (3, ()),
        (3, (VolumePath("out.csv"),)),
        (3, (GirderUploadVolumePathJobArtifact(VolumePath("core"), gc=girder_client()),)),
    ],
)
def test_files_that_go_nowhere_are_not_brought_from_another_user(site, exit_code, hooks):
    """They may be many gigabytes."""
    site.cluster.default_program = FakeProgram(exit_code=exit_code)
    asked = []
    site.runs.outputs_place = lambda token, _check: asked.append(token)
    site.task(hooks=hooks_of(*hooks))
    site.run_to_the_end(seconds=60)
    assert site.shown().status == (JobStatus.ERROR if exit_code else JobStatus.SUCCESS)
    assert asked == []


def test_a_directory_of_another_owner_that_can_be_read_is_no_reason_to_refuse_outputs(tmp_path, monkeypatch):
    """Its mode was set although it need not be changed, which only its owner may."""
    (tmp_path / "volume").mkdir(mode=0o700)

    def chmod(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", chmod)
    assert make_safe(tmp_path / "volume") == []
    assert [head["path"] for head, _ in left_entries(tmp_path / "volume", inputs="inputs", begun_ns=0)] == [
        "volume"
    ]


# -- heads of scripts


@pytest.mark.parametrize("line", ["hetjob", "packjob", "  hetjob  # two jobs", "--wait", "-W", "--wai"])
def test_a_head_of_several_jobs_or_one_that_waits_is_refused(line):
    """`#SBATCH hetjob` makes two jobs of one; with `--wait` each submission waits for the end of its job."""
    assert forbidden_head_option((f"#SBATCH {line}",))


def test_options_that_only_begin_like_those_are_not_refused():
    assert (
        forbidden_head_option(("#SBATCH --wait-all-nodes=1", "#SBATCH --comment=hetjob", "#SBATCH -p hetjob"))
        is None
    )


# -- programs of the worker in Slurm, and on its own host


def test_a_conversion_in_slurm_is_not_looked_for_among_all_jobs_at_each_listing(site):
    """It is no job of a record: all records were read in the supervising thread, every fifteen seconds."""
    asked = []
    site.restart(live_tokens=lambda: asked.append(1) or set(), command_tokens=lambda: {"gw-test-c1"})
    running(site)
    rows = {"gw-test-c1": [QueueRow(SlurmJobId("7"), "RUNNING", "None", "gw-test-c1")]}
    for _ in range(3):
        site.supervisor._queue.end_orphans(rows)
    assert not asked
    assert not site.calls("cancel")


def test_a_job_of_nobody_is_cancelled_unless_another_worker_carries_it(site):
    site.restart(live_tokens=lambda: {"gw-test-2"})
    rows = {name: [QueueRow(SlurmJobId("7"), "RUNNING", "None", name)] for name in ("gw-test-1", "gw-test-2")}
    for _ in range(2):
        site.supervisor._queue.end_orphans(rows)
    assert site.calls("cancel") == [("gw-test-1",)]


def test_few_direct_runs_are_under_way_at_once_and_all_have_their_turn(tmp_path):
    """Each had a thread and a container on the worker's host, however many a form, or somebody with a script, asked for."""
    under_way, most, lock = 0, 0, threading.Lock()

    class Counting(FakeCommandRunner):
        def stream(self, argv, **how):
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.01)
            with lock:
                under_way -= 1
            return super().stream(argv, **how)

    script = tmp_path / "job.slurm"
    script.touch()
    cluster = DirectCluster(
        Counting({"/bin/bash": FakeAnswer()}), FakeClock(), limit_seconds=5.0, most_at_once=3
    )
    before = threading.active_count()
    ids = [cluster.submit(Submission(f"gw-{n}", script, tmp_path / "out")) for n in range(30)]
    assert threading.active_count() - before <= 3
    cluster.cancel(["gw-29"])
    wait_until(lambda: {cluster.describe(job).state for job in ids} <= FINAL_STATES, cluster.snapshot)
    assert most <= 3
    assert cluster.describe(ids[-1]).state == "CANCELLED"
    assert {cluster.describe(job).state for job in ids[:-1]} == {"COMPLETED"}


# -- accounting


def test_a_question_to_the_accounting_that_was_ordered_twice_is_asked_once(tmp_path):
    """While no thread was free it was ordered every five seconds, and asked as often, also for no job at all."""
    asked = []
    clock = FakeClock()
    accounting = Accounting(lambda ids: asked.append(list(ids)) or {}, None, clock, tmp_path)
    accounting.job_ended("t1", JobState(slurm_job_id="7", token="gw-1", started={"node": "n1"}))
    clock.advance(10)
    assert accounting.is_due()
    accounting.look()
    accounting.look()
    assert asked == [["7"]]


@pytest.mark.parametrize("line", ["hetjob", "--array=1-10"])
def test_a_sites_template_may_not_make_several_jobs_of_one_either(tmp_path, line):
    """Only the head of a submit script was looked at."""
    template = tmp_path / "site.slurm"
    template.write_text(
        '{% extends "singularity.slurm" %}\n{% block head %}\n#SBATCH ' + line + "\n{% endblock %}\n"
    )
    preparation = Preparation(None, SimpleNamespace(script_template=template), None)
    script = JobScript("gw-1", "/run", "/spool", "/log", "/scratch", ("true",))
    with pytest.raises(NotSupported, match=line.split("=")[0]):
        preparation._rendered(script)


def test_a_set_that_grows_leaves_those_before_it_as_they_were():
    empty = GrowingSet()
    one = empty.with_one_more("a")
    two, other = one.with_one_more("b"), one.with_one_more("c")
    assert (set(empty), set(one), set(two), set(other)) == (set(), {"a"}, {"a", "b"}, {"a", "c"})
    assert "c" not in two
    assert one.with_one_more("a") is one
    assert two == {"b", "a"}
    assert len(other.with_one_more("b")) == 3


# -- programs of other Unix users


class Program:
    """A `girder-slurm-files` that says who it is, and then answers, or nothing as long as one waits."""

    def __init__(self, clock, *, is_stopped):
        self._clock = clock
        self.is_stopped = is_stopped
        self.is_ended = False
        hello = {"program": "girder-slurm-files", "protocol": PROTOCOL, "uid": os.getuid()}
        self._said = io.BytesIO(frame(hello))

    def send(self, data, *, timeout_seconds):
        del data, timeout_seconds
        self._said = io.BytesIO(b"" if self.is_stopped else frame({"value": []}))

    def receive(self, count, *, timeout_seconds):
        data = self._said.read(count)
        if len(data) < count:
            self._clock.advance(timeout_seconds)
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        return data

    def last_words(self):
        return ""

    def close(self):
        self.is_ended = True


def files_of_a_user(tmp_path, clock, *, is_stopped):
    programs = []

    def start():
        programs.append(Program(clock, is_stopped=is_stopped))
        return programs[-1]

    made = UserRunFiles(
        "daemon", tmp_path / "r", uid=os.getuid(), transfers=tmp_path, start=start, clock=clock
    )
    return made, programs


def test_a_user_who_stops_the_program_that_runs_as_them_does_not_stop_all_others(tmp_path):
    """The thread that looks at all events waited half a minute for it, every half a minute: `kill -STOP` in a loop."""
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=True)
    waited, until = 0.0, clock.monotonic() + 4 * 3600
    while clock.monotonic() < until:
        begun = clock.monotonic()
        with pytest.raises(UserUnreachable):
            made.events()
        waited += clock.monotonic() - begun
        clock.advance(0.25)
    assert waited < 0.08 * 4 * 3600
    assert all(program.is_ended for program in programs)


def test_a_file_system_that_was_slow_once_is_tried_again_soon(tmp_path):
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=True)
    with pytest.raises(UserUnreachable):
        made.events()
    programs.clear()
    clock.advance(41.0)
    made._start = lambda: Program(clock, is_stopped=False)
    assert made.events() == []


def test_a_program_that_is_let_go_on_for_a_moment_is_left_alone_for_longer_all_the_same(tmp_path):
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=False)
    waited, until = 0.0, clock.monotonic() + 4 * 3600
    while clock.monotonic() < until:
        begun = clock.monotonic()
        with contextlib.suppress(UserUnreachable):
            made.events()
            programs[-1].is_stopped = True
        waited += clock.monotonic() - begun
        clock.advance(0.25)
    assert waited < 0.08 * 4 * 3600


def test_programs_of_users_whose_jobs_are_over_are_ended(tmp_path):
    """Two processes for each Unix user who ever had a job, until the worker was stopped."""
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=False)
    made.events()
    made.close_idle()
    assert [program.is_ended for program in programs] == [False]
    clock.advance(601.0)
    made.close_idle()
    assert [program.is_ended for program in programs] == [True]
    assert made.events() == []
    assert len(programs) == 2


def test_what_a_job_said_after_its_end_is_removed_with_it_from_any_users_spool(tmp_path):
    """Of the spools only the worker's own was tidied: a second copy's word stayed in another user's for ever."""
    site = Site(tmp_path)
    site.users = MAPPING
    site.restart()
    site.task()
    site.run_to_the_end()
    state = site.state()
    spool = site.others["daemon"].spool
    words = {"token": state.token, "kind": "refused", "nonce": "x", "slurm_job_id": "9", "why": "claimed"}
    (spool / f"{state.token}.refused.9.0.json").write_text(json.dumps(words))
    (spool / "gw-test-other.refused.9.0.json").write_text(json.dumps({**words, "token": "gw-test-other"}))
    runs_of = site.supervisor._do.runs_of
    retention = Retention(site.root, runs_of, site.clock, keep_days=7, keep_failed_days=30)
    site.clock.advance(time.time() - site.clock.now() + 8 * 86400)
    assert retention.remove_old() == 1
    assert [path.name for path in spool.iterdir()] == ["gw-test-other.refused.9.0.json"]
    assert not (site.others["daemon"].root / state.token).exists()


# -- stopping, and a Girder that hangs


def test_a_stop_does_not_wait_for_cancels_that_were_not_begun(site):
    (job,) = running(site)
    live = site.job(job)
    live.is_busy = True
    site.supervisor._to_cancel[""] = [live]
    begun = site.clock.monotonic()
    site.supervisor.stop()
    assert site.clock.monotonic() == begun
    assert not live.is_busy


def test_threads_that_wait_for_one_answer_of_girder_do_not_each_wait_for_one_of_their_own():
    """Four threads that also cancel in Slurm: each waited a minute, one after the other."""
    asked = []

    class Hanging:
        def request(self, _method, url, **_how):
            asked.append(url)
            clock.advance(60.0)
            raise requests.ReadTimeout

    clock = FakeClock()
    plugin = ServerPlugin(clock, Hanging())
    job = GirderJob("http://girder/api/v1/job/1", "secret")
    for _ in range(4):
        with pytest.raises(GirderUnreachable):
            plugin.settings(job)
    assert len(asked) == 1
    clock.advance(61.0)
    with pytest.raises(GirderUnreachable):
        plugin.settings(job)
    assert len(asked) == 2


@pytest.mark.parametrize("kill", [False, True])
def test_one_of_many_jobs_that_ends_meanwhile_does_not_spoil_the_order_for_all(kill):
    listing = "".join(f"{number}|RUNNING|None|alice|gw-{number}\n" for number in range(1, 9))
    listing += "9|COMPLETING|None|alice|gw-9\n"
    words = "scancel: error: Kill job error on job id 3: Job/step already completing or completed"
    cluster, runner, budget = cluster_with(
        {"squeue": FakeAnswer(stdout=listing), "scancel": FakeAnswer(1, stderr=words)}, per_second=10.0
    )
    cluster.cancel([f"gw-{number}" for number in range(1, 10)], kill=kill)
    assert "9" not in runner.calls[-1].argv
    assert budget.calls_per_second == 10.0


# -- directories that are gone


def test_a_spool_that_somebody_removed_is_made_again(site):
    """No job could leave a word any more, and each ended as an error, also one whose analysis had succeeded."""
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    site.runs.spool.rmdir()
    site.run_for(1)
    assert site.runs.spool.stat().st_mode & 0o777 == 0o700
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS


def test_nothing_is_made_where_the_file_system_is_not_mounted(tmp_path):
    runs = RunDirectories(tmp_path / "jobs")
    with pytest.raises(FileNotFoundError):
        runs.events()
    assert list(tmp_path.iterdir()) == []


# -- what a power cut took: a file that was replaced without a sync may be empty


@pytest.mark.parametrize("left", [b"", b"\0\0\0\0", b"{}", None])
@pytest.mark.fault("power cut between write and sync", phases=("inputs staging",))
def test_a_task_whose_staged_form_is_gone_is_staged_again(site, left):
    """The job ended as an error: an unexpected one, JSONDecodeError."""
    site.one_step_a_turn = True
    record = site.task()
    site.run_until(lambda: site.entries()[-1] == "staged")
    if left is None:
        (record.path / "task.json").unlink()
    else:
        (record.path / "task.json").write_bytes(left)
    site.one_step_a_turn = False
    site.restart()
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert len(site.calls("submit")) == 1


@pytest.mark.fault("power cut between write and sync", phases=("status reporting",))
def test_a_result_that_is_gone_is_sent_as_far_as_it_is_known(site):
    """The caller of the task, or the next one of its chain, waited for ever."""
    site.one_step_a_turn = True
    record = site.task()
    site.run_until(lambda: site.entries()[-1] == "delivered")
    (record.path / "result.json").write_bytes(b"")
    site.one_step_a_turn = False
    site.restart()
    site.run_to_the_end()
    assert site.results.sent == [("success", "t1", [])]


@pytest.mark.parametrize("left", [b"", None])
@pytest.mark.fault("power cut between write and sync", phases=("running",))
def test_a_log_of_which_is_not_known_what_girder_has_is_written_anew(tmp_path, left):
    """All of it came a second time, behind the first."""
    bench = FeedBench(tmp_path)
    for line in ("one\n", "two\n"):
        bench.write(line)
        bench.feed.read()
        bench.send()
    assert bench.girder.text == "one\ntwo\n"
    if left is None:
        (bench.record / "log.json").unlink()
    else:
        (bench.record / "log.json").write_bytes(left)
    bench.reload()
    bench.write("three\n")
    bench.feed.read()
    for _ in range(3):
        bench.send()
    assert bench.girder.text == "one\ntwo\nthree\n"


# -- submissions that surface at the last moment


@pytest.mark.fault("frozen controller takes a submission late", phases=("submitted",))
def test_a_refusal_does_not_end_a_job_of_which_an_earlier_submission_runs(site):
    """The claim was taken for the refused one, and whether it was got was not looked at: the running one was forgotten."""
    submit, tries = site.cluster.submit, []

    def late(submission):
        tries.append(submission)
        if len(tries) == 1:
            raise SubmitUnsure("the controller is frozen")
        site.cluster.start(submit(submission))
        raise SubmitRejected("Invalid account")

    site.cluster.submit = late
    site.task()
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert len(tries) == 2


@pytest.mark.fault("frozen controller takes a submission late", phases=("submitted",))
def test_a_submission_that_starts_while_it_is_given_up_is_not_given_up(site):
    submit, claim, tries = site.cluster.submit, site.runs.claim, []

    def unsure(submission):
        tries.append(submission)
        raise SubmitUnsure("the controller is frozen")

    def claims(token, why):
        if why == "given up":
            site.cluster.start(submit(tries[0]))
        return claim(token, why)

    site.cluster.submit, site.runs.claim = unsure, claims
    site.task()
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS


# -- the lease


def test_a_worker_whose_housekeeping_waits_for_slurm_still_shows_that_it_lives(monkeypatch):
    """scancel of a frozen controller takes three minutes: others took the lease for stale, and its jobs over."""
    monkeypatch.setattr(worker, "_HOUSEKEEPING_SECONDS", 0.01)
    monkeypatch.setattr(worker, "REFRESH_SECONDS", 0.01, raising=False)
    may_go, waits, refreshed = threading.Event(), threading.Event(), []
    nothing = SimpleNamespace(
        start=lambda *_: None, stop=lambda: None, close=lambda: None, close_idle=lambda: None
    )
    conversions = SimpleNamespace(end_abandoned=lambda: (waits.set(), may_go.wait(10)))
    parts = dict.fromkeys((field.name for field in fields(worker.SlurmWorker)), nothing)
    root = SimpleNamespace(own_records=list, orphaned_records=lambda _clock: (), path="/jobs", worker_id="w1")
    lease = SimpleNamespace(refresh=lambda: refreshed.append(1), release=lambda: None)
    retention = SimpleNamespace(is_due=lambda: False, look_after=lambda: None)
    made = worker.SlurmWorker(
        **{
            **parts,
            "root": root,
            "lease": lease,
            "retention": retention,
            "image_retention": retention,
            "removed_images": None,
            "conversions": conversions,
            "accounting": None,
        }
    )
    made.start()
    try:
        assert waits.wait(10)
        seen = len(refreshed)
        wait_until(lambda: len(refreshed) > seen + 3, lambda: refreshed)
    finally:
        may_go.set()
        made.stop()
