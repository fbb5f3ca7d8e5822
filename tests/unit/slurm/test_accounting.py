"""Slurm's accounting, asked after the end for what a job itself could not tell."""

from __future__ import annotations

import json

import pytest

from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.interface import SlurmJobId
from girder_worker_slurm.cluster.slurm_accounting import (
    AccountedUsage,
    UsageSoFar,
    accounted_seconds,
    is_absent,
    parse_sacct,
    parse_sstat,
    sacct_arguments,
    sstat_arguments,
)
from girder_worker_slurm.errors import ClusterUnreachable, GirderUnreachable
from girder_worker_slurm.job.accounting import Accounting
from girder_worker_slurm.job.state import GirderJob, JobState
from girder_worker_slurm.job.usage import accounted_sentence, sentence_so_far

# sacct of 22.05.8, with slurmdbd: a job with one step of srun, which ended with 3, and one that still runs.
ANSWER = (
    (
        "Welcome to the cluster!\n"
        "1|gw-tok-1|FAILED|6|00:01.830||acc1|3:0\n"
        "1.batch|batch|FAILED|6|00:00.293|65292K|acc1|3:0\n"
        "1.0|bash|COMPLETED|3|00:01.536|61884K|acc1|0:0\n"
        "2|gw-tok-2|RUNNING|6|00:00:00||acc1|0:0\n"
    )
    .replace("|3:0\n", "\n")
    .replace("|0:0\n", "\n")
)
USAGE = AccountedUsage("gw-tok-1", "acc1", 6.0, 1.83, 65292 / 1024)
GIRDER = GirderJob("http://girder/api/v1/job/1", "secret")


def test_jobs_that_have_ended_are_read_with_the_most_of_their_steps():
    assert parse_sacct(ANSWER) == {"1": USAGE}
    assert parse_sacct("") == {}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:01.830", 1.83), ("01:02:03", 3723), ("2-00:00:01", 172801), ("", None), ("x", None), ("INVALID", None)],
)  # fmt: skip
def test_times_are_read_as_sacct_writes_them(text, seconds):
    assert accounted_seconds(text) == seconds


def test_only_numbers_are_asked_for():
    assert "--jobs=1,22" in sacct_arguments(["1", "22"])
    for ids in ([], [""], ["1;2"], ["--all"]):
        with pytest.raises(ValueError, match="not Slurm job ids"):
            sacct_arguments(ids)


def test_a_cluster_without_accounting_is_known_by_its_words():
    assert is_absent("Slurm accounting storage is disabled\n")
    assert not is_absent("sacct: error: slurm_persist_conn_open: timed out")
    assert not is_absent("sacct: error: Problem talking to the database: Connection refused")


def test_what_is_not_known_is_left_out_of_the_sentence():
    assert accounted_sentence(USAGE) == (
        "By Slurm's accounts it used 64 MiB of memory at most and 2 s of processor time; ran 6 s on acc1."
    )
    assert accounted_sentence(AccountedUsage("t", "", None, None, None)) == "By Slurm's accounts it ran."


class Updates:
    def __init__(self):
        self.logs, self.error = [], None

    def update(self, job, *, log):
        if self.error:
            raise self.error
        self.logs.append((job.job_id, log))


class Bench:
    def __init__(self, tmp_path):
        self.clock, self.updates, self.asked, self.answers = FakeClock(), Updates(), [], []
        self.ended = tmp_path
        self.accounting = Accounting(self.ask, self.updates, self.clock, tmp_path)

    def ask(self, ids):
        self.asked.append(list(ids))
        answer = self.answers.pop(0) if self.answers else {"1": USAGE}
        if isinstance(answer, Exception):
            raise answer
        return answer

    def job(self, task="task1", slurm_job_id="1", name="gw-tok-1", ended=None, **started):
        (self.ended / task).mkdir(exist_ok=True)
        state = JobState(
            girder=GIRDER, token=name, slurm_job_id=slurm_job_id, started={"at": 1.0, **started},
            ended={"seconds": 5} if ended is None else ended,
        )  # fmt: skip
        self.accounting.job_ended(task, state)

    def pass_time(self, seconds=60.0):
        self.clock.sleep(seconds)
        if self.accounting.is_due():
            self.accounting.look()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


KNOWN = {"seconds": 5, "memory_peak_bytes": 1, "times": "0m1.000s 0m0.000s"}


def test_what_a_job_used_is_written_down_and_shown_once(bench):
    bench.job()
    bench.pass_time(4)
    assert bench.asked == []
    bench.pass_time(2)
    bench.pass_time()
    assert bench.asked == [["1"]]
    assert bench.updates.logs == [("1", f"{accounted_sentence(USAGE)}\n")]
    assert AccountedUsage(**json.loads((bench.ended / "task1" / "accounted.json").read_text())) == USAGE


def test_a_job_that_could_tell_itself_is_not_asked_for_unless_it_had_several_nodes(bench):
    bench.job(ended=KNOWN)
    bench.pass_time()
    assert bench.asked == []
    bench.job(ended=KNOWN, nodes=2)
    bench.pass_time()
    assert bench.asked == [["1"]]


def test_many_are_asked_for_with_one_command_a_minute(bench):
    for number in range(300):
        bench.job(task=f"t{number}", slurm_job_id=str(number + 1))
    bench.pass_time(10)
    bench.pass_time(10)
    assert [len(ids) for ids in bench.asked] == [200]
    bench.pass_time()
    assert len(bench.asked) == 2


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


def test_a_cluster_without_accounting_is_asked_once(bench):
    bench.answers = [None]
    bench.job()
    bench.pass_time()
    bench.job(task="other")
    bench.pass_time()
    assert len(bench.asked) == 1


def test_what_does_not_show_up_is_given_up_after_some_tries(bench):
    bench.answers = [ClusterUnreachable("busy"), {}, {}, {}]
    bench.job()
    for _ in range(6):
        bench.pass_time()
    assert len(bench.asked) == 3
    assert bench.updates.logs == []


def test_another_job_of_that_number_is_not_ours(bench):
    bench.job(name="gw-other")
    bench.pass_time()
    assert bench.updates.logs == []


def test_a_girder_that_is_away_costs_the_line_and_nothing_else(bench):
    bench.updates.error = GirderUnreachable("away")
    bench.job()
    bench.pass_time()
    assert (bench.ended / "task1" / "accounted.json").is_file()


def test_a_record_that_was_removed_meanwhile_is_no_harm(bench):
    bench.job()
    (bench.ended / "task1").rmdir()
    bench.pass_time()
    assert bench.updates.logs == []


# As sstat writes it: the step of the script, and one of srun with four tasks.
RUNNING = (
    "Welcome to the cluster!\n17.batch|1|00:00:02|65292K\n17.0|4|01:30.500|61884K\n18.batch|1|09:00:00|9G\n"
)


def test_the_steps_of_a_running_job_are_added_up():
    assert parse_sstat(RUNNING, "17") == UsageSoFar(2 + 4 * 90.5, 65292 / 1024)


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ("", None),
        ("17.batch||||\n17.batch\n", None),
        ("17.batch|1||\n", None),
        ("17.batch|1|213503982334-14:25:51|\n", None),
        ("17.batch|1|00:00:00|0\n", UsageSoFar(0.0, None)),
        ("17.batch|x|00:00:01|2M\n", UsageSoFar(None, 2.0)),
        ("18.batch|1|00:00:01|2M\n", None),
    ],
)
def test_what_sstat_does_not_know_is_not_known(answer, usage):
    assert parse_sstat(answer, "17") == usage


def test_sstat_is_asked_about_one_job_by_its_number():
    assert "--jobs=17" in sstat_arguments("17")
    for job_id in ("", "17,18", "--all", "17.batch"):
        with pytest.raises(ValueError, match="not a Slurm job id"):
            sstat_arguments(job_id)


def running_cluster(**programs):
    said = "JobId=17 JobName=gw-1 UserId=alice(1) JobState=RUNNING Reason=None Restarts=0 ExitCode=0:0 NodeList=n1"
    answers = {"scontrol": FakeAnswer(stdout=f"{said}\n"), "sstat": FakeAnswer(stdout=RUNNING), **programs}
    runner, clock = FakeCommandRunner(answers), FakeClock()
    return CommandCluster(runner, clock, CallBudget(100.0, clock), CommandOptions(user="alice")), runner


def test_a_running_job_is_asked_for_by_number_and_known_by_name():
    cluster, runner = running_cluster()
    assert cluster.usage_so_far(SlurmJobId("17"), "gw-1") == UsageSoFar(364.0, 65292 / 1024)
    assert [call.argv[0] for call in runner.calls] == ["scontrol", "sstat"]


@pytest.mark.parametrize(
    "programs",
    [
        {
            "sstat": FakeAnswer(
                1, stderr="sstat: error: slurm_job_step_stat: there was an error: Invalid user id"
            )
        },
        {"sstat": FakeAnswer()},
        {"scontrol": FakeAnswer(stdout="JobId=17 JobName=gw-1 JobState=COMPLETING ExitCode=0:0\n")},
        {"scontrol": FakeAnswer(stdout="JobId=17 JobName=another JobState=RUNNING ExitCode=0:0\n")},
        {"scontrol": FakeAnswer(1, stderr="slurm_load_jobs error: Invalid job id specified")},
    ],
)
def test_where_slurm_does_not_tell_nothing_is_known(programs):
    cluster, _ = running_cluster(**programs)
    assert cluster.usage_so_far(SlurmJobId("17"), "gw-1") is None


def test_a_cluster_without_sstat_tells_nothing_and_one_that_hangs_is_not_waited_for():
    cluster, runner = running_cluster()
    del runner.programs["sstat"]
    assert cluster.usage_so_far(SlurmJobId("17"), "gw-1") is None
    cluster, _ = running_cluster(sstat=FakeAnswer(takes_seconds=1000.0))
    with pytest.raises(ClusterUnreachable):
        cluster.usage_so_far(SlurmJobId("17"), "gw-1")


def test_what_a_job_has_used_so_far_is_said_in_words():
    assert (
        sentence_so_far(UsageSoFar(364.0, 63.8)) == "64 MiB of memory at most and 6 min 4 s of processor time"
    )
    assert sentence_so_far(UsageSoFar(None, 2048.0)) == "2.0 GiB of memory at most"
