"""What a worker does under strain: thousands of cancels at once, full disks, a Slurm or Girder that hangs, hostile files."""

from __future__ import annotations

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
from girder_worker_slurm.errors import ClusterUnreachable, GirderUnreachable
from girder_worker_slurm.job.state import Outcome
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.site import GirderJobOfFake, Site, message_of
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
        def run(self, argv, **how):
            raise CommandNotStarted(f"Cannot run {argv[0]!r}: Resource temporarily unavailable.")

    clock = FakeClock()
    cluster = CommandCluster(Full(), clock, CallBudget(10.0, clock), CommandOptions(user="alice"))
    from tests.unit.slurm.test_command_cluster import SUBMISSION  # noqa: PLC0415

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
