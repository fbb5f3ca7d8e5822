"""What the commands' answers, refusals and silences mean; on a pretended runner and with recorded words."""

from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_singularity.command_runner import CommandNotStarted
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


def test_a_refusal_to_one_user_does_not_make_all_calls_slower():
    """Each refusal of sudo halved the calls of everybody, down to four a minute."""
    refusal = FakeAnswer(1, stderr="sudo: a password is required")
    cluster, _, budget = cluster_with({"scancel": refusal, "sudo": refusal}, per_second=10.0)
    for _ in range(5):
        with pytest.raises(ClusterUnreachable):
            cluster.cancel(["gw-1"])
    assert budget.calls_per_second == 10.0


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
