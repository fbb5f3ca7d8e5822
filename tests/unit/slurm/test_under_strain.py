"""What a worker does under strain: thousands of cancels at once, full disks, a Slurm or Girder that hangs, hostile files."""

from __future__ import annotations

import contextlib
import errno
import json
import threading

import pytest

from girder_worker_singularity.command_runner import (
    CommandError,
    CommandNotStarted,
    LocalCommandRunner,
)
from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.errors import ClusterUnreachable, GirderUnreachable, OutputRefused, OwnershipLost
from girder_worker_slurm.girder.job_updates import JobStatus, JobUpdates
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.job.state import GirderJob, Outcome
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.http_girder import Mishap, http_girder
from tests.unit.slurm.site import GirderJobOfFake, Site, message_of
from tests.unit.slurm.test_command_cluster import SUBMISSION
from tests.unit.slurm.test_outputs import Bench as OutputBench
from tests.unit.slurm.test_supervisor_threads import wait_until
from tests.unit.slurm.test_unix_user_jobs import MAPPING


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
