"""What the commands' answers, refusals and silences mean; on a pretended runner and with recorded words."""

from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions, command_environment
from girder_worker_slurm.cluster.interface import SlurmJobId, Submission
from girder_worker_slurm.errors import ClusterUnreachable, SubmitDeferred, SubmitRejected, SubmitUnsure

SUBMISSION = Submission("gw-1", Path("/run/job.slurm"), Path("/run/slurm.out"))


def cluster(answer=None, program="sbatch", **options):
    runner = FakeCommandRunner({program: answer} if answer is not None else {})
    clock = FakeClock()
    options = CommandOptions(user="alice", timeout_seconds=60.0, **options)
    made = CommandCluster(runner, clock, CallBudget(1000.0, clock), options)
    made.seen = runner.calls
    return made


def test_a_submission_gives_its_id():
    assert cluster(FakeAnswer(stdout="banner\n77;c\n")).submit(SUBMISSION) == "77"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (FakeAnswer(1, stderr="sbatch: error: invalid partition specified: x"), SubmitRejected),
        (FakeAnswer(1, stderr="sbatch: error: Batch job submission failed: Invalid account"), SubmitRejected),
        (FakeAnswer(1, stderr="sbatch: error: AssocMaxSubmitJobLimit"), SubmitDeferred),
        (FakeAnswer(1, stderr="sbatch: error: Socket timed out on send/recv operation"), SubmitUnsure),
        (FakeAnswer(1, stderr="Unable to contact slurm controller (connect failure)"), SubmitUnsure),
        (FakeAnswer(0, stdout="no id\n"), SubmitUnsure),
        (FakeAnswer(-9), SubmitUnsure),
        (FakeAnswer(takes_seconds=100.0), SubmitUnsure),
    ],
)
def test_each_way_a_submission_fails_is_told_apart(answer, error):
    with pytest.raises(error):
        cluster(answer).submit(SUBMISSION)


def test_a_missing_sbatch_has_certainly_not_submitted():
    with pytest.raises(ClusterUnreachable, match="commands_dir"):
        cluster().submit(SUBMISSION)


def test_a_refused_option_never_reaches_slurm():
    refusing = cluster(FakeAnswer(stdout="77\n"))
    with pytest.raises(SubmitRejected, match="output"):
        refusing.submit(Submission("gw-1", Path("/r"), Path("/o"), (("output", "/etc/passwd"),)))
    assert refusing.seen == []


def test_only_rows_of_the_token_itself_are_found():
    answer = FakeAnswer(stdout="1|RUNNING|None|alice|gw-1\n2|RUNNING|None|alice|gw-11\n")
    assert [row.slurm_job_id for row in cluster(answer, "squeue").find("gw-1")] == ["1"]


@pytest.mark.parametrize(
    "answer",
    [
        FakeAnswer(1, stderr="slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        FakeAnswer(1, stdout="1|RUNNING|None|alice|gw-1\n"),
        FakeAnswer(takes_seconds=100.0),
        None,
    ],
)
@pytest.mark.fault("squeue fails, hangs or is refused", phases=("pending", "running"))
def test_a_listing_that_failed_is_no_listing(answer):
    for ask in (lambda made: made.snapshot(), lambda made: made.find("gw-1")):
        with pytest.raises(ClusterUnreachable):
            ask(cluster(answer, "squeue"))


def test_an_empty_listing_is_a_listing():
    assert cluster(FakeAnswer(), "squeue").snapshot().rows == ()


def test_the_snapshot_tells_when_it_was_asked_for():
    made = cluster(FakeAnswer(), "squeue")
    assert made.snapshot().asked_at == FakeClock().monotonic()


def test_an_unknown_job_is_none_and_trouble_is_trouble():
    unknown = FakeAnswer(1, stderr="slurm_load_jobs error: Invalid job id specified")
    assert cluster(unknown, "scontrol").describe(SlurmJobId("7")) is None
    for answer in (FakeAnswer(1, stderr="Socket timed out"), FakeAnswer(0), FakeAnswer(takes_seconds=99.0)):
        with pytest.raises(ClusterUnreachable):
            cluster(answer, "scontrol").describe(SlurmJobId("7"))


def test_to_cancel_an_unknown_job_is_no_error_and_trouble_is():
    gone = FakeAnswer(1, stderr="scancel: error: Kill job error on job id 7: Invalid job id specified")
    cluster(gone, "scancel").cancel(["gw-7"])
    with pytest.raises(ClusterUnreachable):
        cluster(FakeAnswer(1, stderr="Socket timed out"), "scancel").cancel(["gw-7"])


def test_to_cancel_nothing_asks_nothing():
    made = cluster(FakeAnswer(), "scancel")
    made.cancel([])
    assert made.seen == []


def test_commands_come_from_the_set_directory_and_know_little_of_the_workers_environment(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "x")
    monkeypatch.setenv("GIRDER_WORKER_BROKER", "amqp://user:geheim@host/")
    made = cluster(FakeAnswer(), "/opt/slurm/bin/squeue", commands_dir=Path("/opt/slurm/bin"))
    made.snapshot()
    (call,) = made.seen
    assert call.argv[0] == "/opt/slurm/bin/squeue"
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION", "GIRDER_WORKER_BROKER"} & set(call.env)
    assert call.env["LC_ALL"] == "C.UTF-8"


def test_the_configuration_of_slurm_is_passed_on():
    assert command_environment({"SLURM_CONF": "/s", "HOME": "/h", "TOKEN": "x"})["SLURM_CONF"] == "/s"
    assert "TOKEN" not in command_environment({"TOKEN": "x"})


def test_a_budget_lets_so_many_calls_a_second_through():
    clock = FakeClock()
    budget = CallBudget(10.0, clock)
    for _ in range(30):
        budget.take()
    assert 1.8 <= sum(clock.slept) <= 3.0


def test_a_controller_in_trouble_is_asked_less_and_later_as_before():
    clock = FakeClock()
    budget = CallBudget(10.0, clock)
    budget.failed()
    assert budget.calls_per_second == 5.0
    for _ in range(20):
        budget.failed()
    assert budget.calls_per_second == pytest.approx(4 / 60)
    for _ in range(200):
        budget.succeeded()
    assert budget.calls_per_second == 10.0


def test_a_refusal_of_a_listing_makes_it_asked_less():
    clock = FakeClock()
    budget = CallBudget(10.0, clock)
    runner = FakeCommandRunner({"squeue": FakeAnswer(1, stderr="Socket timed out")})
    made = CommandCluster(runner, clock, budget, CommandOptions(user="alice"))
    with pytest.raises(ClusterUnreachable):
        made.snapshot()
    assert budget.calls_per_second == 5.0


@pytest.mark.fault("squeue prints a part", phases=("pending", "running"))
def test_a_listing_whose_middle_was_left_out_is_no_listing():

    class Cutting(FakeCommandRunner):
        def run(self, argv, **how):
            result = super().run(argv, **how)
            return type(result)(result.argv, 0, result.stdout, "", truncated=True)

    clock = FakeClock()
    runner = Cutting({"squeue": FakeAnswer(stdout="1|RUNNING|None|alice|gw-1\n")})
    cluster = CommandCluster(runner, clock, CallBudget(50.0, clock), CommandOptions(user="u"))
    with pytest.raises(ClusterUnreachable):
        cluster.snapshot()
