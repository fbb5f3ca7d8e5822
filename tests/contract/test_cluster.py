"""One suite for every way to reach Slurm: what a `Cluster` promises, kept by the pretended one and by the real one.

The real one needs the stack's env file loaded and runs as the stack's unprivileged user. Its jobs are small, have
names of their own, and are cancelled at the end.
"""

from __future__ import annotations

import getpass
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.direct_cluster import DirectCluster
from girder_worker_slurm.cluster.interface import SlurmJobId, Submission
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.errors import SubmitRejected
from girder_worker_slurm.options.partitions import used_partitions
from girder_worker_slurm.script.render import JobScript, argument_file, render_script
from girder_worker_slurm.testing import FakeCluster, FakeProgram

#: Keeps a job in the queue for longer than any test.
WAITS = (("begin", "now+1hour"),)
SMALL = (("ntasks", "1"), ("mem", "50M"))


@dataclass
class Lab:
    """A cluster with a directory that its nodes see, and scripts to run on it."""

    cluster: object
    runs: RunDirectories
    let_time_pass: object
    program: object
    tokens: list[str] = field(default_factory=list)

    def prepare(self, container, *, token="", exit_code=0, is_endless=False) -> str:
        """A run directory whose script runs this container."""
        token = token or f"gw-contract-{uuid.uuid4().hex[:12]}"
        self.tokens.append(token)
        run = self.runs.create(token)
        self.runs.write(token, "nonce", b"0123456789abcdef")
        self.runs.write(token, "arguments", argument_file(()))
        script = JobScript(
            token=token,
            run=str(run),
            spool=str(self.runs.spool),
            log=str(run / "output.log"),
            scratch=str(run / "scratch"),
            container=tuple(container),
        )
        self.runs.write(token, "job.slurm", render_script(script).encode(), mode=0o700)
        self.program(token, FakeProgram(exit_code=exit_code, is_endless=is_endless))
        return token

    def submit(self, token, *options) -> SlurmJobId:
        run = self.runs.path(token)
        given = (*SMALL, *options)
        return self.cluster.submit(Submission(token, run / "job.slurm", run / "slurm.out", given))

    def quick(self, exit_code=0) -> str:
        return self.prepare(("/bin/bash", "-c", f"echo hello; exit {exit_code}"), exit_code=exit_code)

    def endless(self) -> str:
        return self.prepare(("/bin/sleep", "600"), is_endless=True)

    def events(self, token) -> dict[str, object]:
        return {event.kind: event for event in self.runs.events() if event.token == token}

    def wait_for(self, condition, what):
        until = monotonic() + 60
        while True:
            answer = condition()
            if answer:
                return answer
            seen = self.cluster.snapshot().rows
            mine = [row for row in seen if row.token in self.tokens]
            assert monotonic() < until, f"{what} did not come; events {self.runs.events()}, queue {mine}"
            self.let_time_pass()

    def event(self, token, kind):
        return self.wait_for(lambda: self.events(token).get(kind), f"the event {kind} of {token}")

    def detail(self, job_id, *states):
        def look():
            detail = self.cluster.describe(job_id)
            return detail if detail is not None and detail.state in states else None

        return self.wait_for(look, f"one of {sorted(states)} for {job_id}")


def fake_lab(tmp_path):
    runs = RunDirectories(tmp_path)
    runs.prepare()
    clock = FakeClock()
    cluster = FakeCluster(clock)

    def let_time_pass():
        clock.advance(1.0)
        cluster.step()

    yield Lab(cluster, runs, let_time_pass, cluster.programs.__setitem__)


def real_lab(tmp_path):
    del tmp_path
    shared = Path(os.environ.get("DEVSTACK_SHARED", str(Path.home())))
    base = shared / f"contract-{uuid.uuid4().hex[:8]}"
    runs = RunDirectories(base)
    runs.prepare()
    clock = SystemClock()
    options = CommandOptions(user=getpass.getuser(), timeout_seconds=60.0)
    cluster = CommandCluster(LocalCommandRunner(clock=clock), clock, CallBudget(50.0, clock), options)
    lab = Lab(cluster, runs, lambda: sleep(0.2), lambda _token, _program: None)
    yield lab
    rows = cluster.snapshot().rows
    cluster.cancel([row.token for row in rows if row.token in lab.tokens and row.state not in FINAL_STATES])
    shutil.rmtree(base, ignore_errors=True)


def direct_lab(tmp_path):
    """No Slurm at all: jobs run here, at once; nothing ever waits."""
    runs = RunDirectories(tmp_path)
    runs.prepare()
    clock = SystemClock()
    cluster = DirectCluster(LocalCommandRunner(clock=clock), clock, limit_seconds=60.0)
    lab = Lab(cluster, runs, lambda: sleep(0.02), lambda _token, _program: None)
    yield lab
    cluster.cancel(lab.tokens)


LABS = {"fake": fake_lab, "direct": direct_lab, "commands": real_lab}
COMMANDS = pytest.param("commands", marks=pytest.mark.slurm)


@pytest.fixture(params=["fake", COMMANDS])
def queue(request, tmp_path):
    """A cluster where jobs wait for their turn."""
    yield from LABS[request.param](tmp_path)


@pytest.fixture(params=["fake", "direct", COMMANDS])
def lab(request, tmp_path):
    yield from LABS[request.param](tmp_path)


@pytest.fixture(params=[COMMANDS])
def commands(request, tmp_path):
    """Slurm by its commands, which answers more than is asked of every cluster."""
    yield from LABS[request.param](tmp_path)


def test_partitions_tell_what_jobs_get_that_do_not_say(commands):
    partitions = commands.cluster.partitions()
    (default,) = used_partitions({}, partitions)
    assert default.is_default
    assert default.counts_memory
    assert default.node_memory_mib > 1000


def test_a_cluster_without_accounting_says_so(commands):
    assert commands.cluster.accounted(["1"]) is None


def test_a_submitted_job_has_an_id_and_is_found_by_its_token(queue):
    token = queue.endless()
    job_id = queue.submit(token, *WAITS)
    (row,) = queue.cluster.find(token)
    assert job_id.isdigit()
    assert (row.slurm_job_id, row.token, row.state) == (job_id, token, "PENDING")


def test_a_job_that_waits_tells_why(queue):
    token = queue.endless()
    queue.submit(token, *WAITS)
    queue.wait_for(lambda: queue.cluster.find(token)[0].reason == "BeginTime", "the reason")


def test_a_token_that_no_job_has_is_found_nowhere(lab):
    assert lab.cluster.find(f"gw-contract-nobody-{uuid.uuid4().hex}") == ()


def test_the_snapshot_has_every_job_of_ours(queue):
    ids = {token: queue.submit(token, *WAITS) for token in (queue.endless(), queue.endless())}
    snapshot = queue.cluster.snapshot()
    found = {row.token: row.slurm_job_id for row in snapshot.rows if row.token in ids}
    assert found == ids
    assert snapshot.seconds >= 0


def test_a_job_runs_and_tells_its_end_by_itself(lab):
    token = lab.quick()
    job_id = lab.submit(token)
    ended = lab.event(token, "ended")
    assert ended.slurm_job_id == job_id
    assert ended.fields["exit_code"] == 0
    assert lab.runs.claimant(token) == job_id
    detail = lab.detail(job_id, "COMPLETED")
    assert (detail.token, detail.exit_code, detail.signal) == (token, 0, 0)
    assert detail.nodes


def test_a_job_that_fails_is_failed_with_its_exit_code(lab):
    token = lab.quick(exit_code=3)
    job_id = lab.submit(token)
    assert lab.event(token, "ended").fields["exit_code"] == 3
    assert lab.detail(job_id, "FAILED").exit_code == 3


def test_an_ended_job_is_still_found_and_in_the_snapshot(lab):
    token = lab.quick()
    job_id = lab.submit(token)
    lab.detail(job_id, "COMPLETED")
    assert [row.state for row in lab.cluster.find(token)] == ["COMPLETED"]
    assert [row.state for row in lab.cluster.snapshot().rows if row.token == token] == ["COMPLETED"]


def test_an_id_that_slurm_does_not_know_is_none_and_no_error(lab):
    assert lab.cluster.describe(SlurmJobId("99999999")) is None


def test_to_cancel_what_does_not_exist_is_no_error(lab):
    lab.cluster.cancel([f"gw-contract-nobody-{uuid.uuid4().hex}"])
    lab.cluster.cancel([])


def test_a_waiting_job_that_is_cancelled_never_runs(queue):
    token = queue.quick()
    job_id = queue.submit(token, *WAITS)
    queue.cluster.cancel([token])
    queue.detail(job_id, "CANCELLED")
    assert queue.events(token) == {}
    assert queue.runs.claimed_by(token) == ""


def test_all_jobs_of_a_name_are_cancelled_and_no_other(queue):
    token, other = queue.endless(), queue.endless()
    twins = [queue.submit(token, *WAITS), queue.submit(token, *WAITS)]
    bystander = queue.submit(other, *WAITS)
    queue.cluster.cancel([token])
    for twin in twins:
        queue.detail(twin, "CANCELLED")
    queue.detail(bystander, "PENDING")


def test_many_jobs_are_cancelled_at_once_and_no_other(queue):
    tokens, other = [queue.endless() for _ in range(7)], queue.endless()
    waiting = [queue.submit(token, *WAITS) for token in tokens]
    bystander = queue.submit(other, *WAITS)
    queue.cluster.cancel(tokens)
    for job_id in waiting:
        queue.detail(job_id, "CANCELLED")
    queue.detail(bystander, "PENDING")
    queue.cluster.cancel(tokens)  # which have ended


def test_a_running_job_that_is_cancelled_tells_that_it_was_asked_to_end(lab):
    token = lab.endless()
    job_id = lab.submit(token)
    lab.event(token, "started")
    lab.cluster.cancel([token])
    ended = lab.event(token, "ended")
    assert ended.fields["cause"] == "TERM"
    lab.detail(job_id, "CANCELLED")


def test_a_running_job_can_be_killed(lab):
    token = lab.endless()
    job_id = lab.submit(token)
    lab.event(token, "started")
    lab.cluster.cancel([token], kill=True)
    lab.detail(job_id, *FINAL_STATES)


def test_a_job_that_has_ended_can_be_cancelled_again_without_an_error(lab):
    token = lab.quick()
    job_id = lab.submit(token)
    lab.detail(job_id, "COMPLETED")
    lab.cluster.cancel([token])
    assert lab.cluster.describe(job_id).state == "COMPLETED"


def test_jobs_of_the_same_name_are_all_found_and_told_apart(queue):
    token = queue.endless()
    ids = {queue.submit(token, *WAITS), queue.submit(token, *WAITS)}
    assert len(ids) == 2
    assert {row.slurm_job_id for row in queue.cluster.find(token)} == ids


def test_of_two_jobs_of_the_same_name_only_one_runs_its_container(lab):
    token = lab.prepare(("/bin/bash", "-c", "echo ran; sleep 0.5"))
    ids = {lab.submit(token), lab.submit(token)}
    ended, refused = lab.event(token, "ended"), lab.event(token, "refused")
    assert {ended.slurm_job_id, refused.slurm_job_id} == ids
    assert lab.runs.claimant(token) == ended.slurm_job_id
    for job_id in ids:
        lab.detail(job_id, "COMPLETED")


def test_a_job_whose_claim_the_worker_has_runs_nothing(lab):
    token = lab.quick()
    assert lab.runs.claim(token, "cancelled")
    job_id = lab.submit(token)
    assert lab.event(token, "refused").fields["why"] == "claimed"
    lab.detail(job_id, "COMPLETED")
    assert set(lab.events(token)) == {"refused"}


def test_a_long_token_is_not_cut(queue):
    token = queue.prepare(("/bin/true",), token="gw-contract-" + uuid.uuid4().hex + "x" * 80)
    job_id = queue.submit(token, *WAITS)
    assert queue.cluster.describe(job_id).token == token
    assert [row.slurm_job_id for row in queue.cluster.find(token)] == [job_id]
    assert token in {row.token for row in queue.cluster.snapshot().rows}


@pytest.mark.parametrize(
    "option",
    [
        ("partition", "no-such-partition"),
        ("job-name", "x"),
        ("comment", "a\nb"),
        ("--mem", "1G"),
        ("wrap", "id"),
    ],
)
def test_a_bad_option_is_refused_and_leaves_no_job(queue, option):
    token = queue.quick()
    with pytest.raises(SubmitRejected, match=f"{option[0]}|control|partition"):
        queue.submit(token, option)
    assert queue.cluster.find(token) == ()


def test_the_values_of_options_do_not_meet_a_shell(queue):
    token = queue.endless()
    job_id = queue.submit(token, ("comment", "$(touch /tmp/x); `id` 'a' \"b\" | c"), *WAITS)
    assert queue.cluster.describe(job_id).token == token
