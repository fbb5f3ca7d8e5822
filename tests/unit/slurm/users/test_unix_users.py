"""Whom jobs may run as, and how programs are started as them."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from girder_worker_singularity.command_runner import Conversation
from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster import run_as
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.interface import Submission
from girder_worker_slurm.cluster.run_as import AccountAway, RunAs, sudo_refusal, uid_of
from girder_worker_slurm.cluster.runs_of_users import RunsOfUsers
from girder_worker_slurm.cluster.user_run_files import UserRunFiles, UserUnreachable
from girder_worker_slurm.errors import ClusterUnreachable, JobsHidden, SubmitRejected, UserRefused
from girder_worker_slurm.users.unix_users import UnixUserRules

#: On every machine.
OTHER = "daemon"
RULES = UnixUserRules(("kirby", "svc", "lab-*"), minimum_uid=1000)


@pytest.mark.parametrize(("name", "uid"), [("kirby", 2001), ("svc", 990), ("lab-x", 1000)])
def test_who_is_on_the_list_may_be_run_as(name, uid):
    RULES.check(name, uid)


@pytest.mark.parametrize(
    ("name", "uid", "words"),
    [
        ("mario", 2002, "does not have them"),
        ("lab-x", 999, "below `minimum_uid`"),
        ("kirby", None, "no such user"),
        ("root", 0, "that is root"),
        ("kirby", 0, "that is root"),
    ],
)
def test_all_others_may_not(name, uid, words):
    with pytest.raises(UserRefused, match=words):
        RULES.check(name, uid)
    with pytest.raises(UserRefused):
        UnixUserRules().check("kirby", 2001)


def test_root_is_never_run_as_whatever_the_list_says():
    with pytest.raises(UserRefused):
        UnixUserRules(("*", "root", "toor"), minimum_uid=0).check("toor", 0)


def test_sudo_gets_the_full_path_of_the_program_and_only_what_is_not_the_users_own():
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/home/worker",
        "USER": "worker",
        "SLURM_CONF": "/s",
        "KRB5CCNAME": "x",
    }
    argv, given = RunAs(is_root=False).command(OTHER, ["cat", "-u"], environment)
    program = next(path for path in ("/usr/bin/cat", "/bin/cat") if Path(path).exists())
    assert argv[1:] == ["-n", "-H", "-u", OTHER, "PATH=/usr/bin:/bin", "SLURM_CONF=/s", program, "-u"]
    assert given == environment


def test_root_changes_all_numbers_and_the_home_without_sudo():
    account = pwd.getpwnam(OTHER)
    argv, given = RunAs(is_root=True).command(
        OTHER, ["cat"], {"PATH": "/usr/bin:/bin", "HOME": "/root", "A": "b"}
    )
    assert argv[0].endswith("setpriv")
    assert argv[1:-1] == [
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--init-groups",
        "--inh-caps=-all",
    ]
    assert (given["HOME"], given["USER"], given["LOGNAME"], given["A"]) == (account.pw_dir, OTHER, OTHER, "b")


def test_a_refusal_of_sudo_is_told_from_the_programs_own_words():
    assert sudo_refusal("sudo: a password is required\n") == "sudo: a password is required"
    assert sudo_refusal("sbatch: error: sudo: is not an account") == ""


OPEN = "PrivateData = none\nSlurmUser = slurm(64030)\n"
HIDDEN = "PrivateData             = accounts,jobs,usage\n"


def cluster(answers, *, root=False, **how):
    clock = FakeClock()
    runner = FakeCommandRunner(answers)
    options = CommandOptions(user="worker", environment={"PATH": "/nowhere"}, **how)
    made = CommandCluster(runner, clock, CallBudget(1000.0, clock), options, RunAs(is_root=root))
    return made, runner.calls


def test_jobs_are_submitted_and_cancelled_as_their_user_and_listed_for_all():
    sudo = {
        "sudo": FakeAnswer(stdout="77\n"),
        "squeue": FakeAnswer(stdout=""),
        "scancel": FakeAnswer(),
        "scontrol": FakeAnswer(stdout=OPEN),
    }
    made, calls = cluster(sudo, other_users=lambda: (OTHER, "worker"))
    made.submit(Submission("gw-1", Path("/r/job.slurm"), Path("/r/slurm.out"), unix_user=OTHER))
    made.cancel(["gw-1"], unix_user=OTHER)
    made.snapshot()
    made.cancel(["gw-2"])
    looked, submitted, cancelled, listed, own = (list(call.argv) for call in calls)
    assert looked == ["scontrol", "show", "config"]
    assert submitted[:5] == ["sudo", "-n", "-H", "-u", OTHER]
    assert "sbatch" in submitted
    assert cancelled[:5] == submitted[:5]
    assert cancelled[-3:] == ["scancel", f"--user={OTHER}", "--name=gw-1"]
    assert f"--user=worker,{OTHER}" in listed
    assert own == ["scancel", "--user=worker", "--name=gw-2"]


def test_a_job_that_another_user_gave_the_same_name_is_not_ours():
    listing = FakeAnswer(
        stdout=f"1|RUNNING|None|worker|gw-1\n2|RUNNING|None|{OTHER}|gw-1\n3|RUNNING|None|eve|gw-1\n"
    )
    made, _ = cluster({"squeue": listing})
    assert [row.slurm_job_id for row in made.find("gw-1")] == ["1"]
    assert [row.slurm_job_id for row in made.find("gw-1", OTHER)] == ["2"]
    assert [row.unix_user for row in made.snapshot().rows] == ["", OTHER, "eve"]


def test_what_sudo_refuses_is_no_refusal_of_slurm():
    refusing = FakeAnswer(1, stderr="sudo: a password is required")
    made, _ = cluster({"sudo": refusing, "scontrol": FakeAnswer(stdout=OPEN)})
    with pytest.raises(SubmitRejected, match=f"may not submit jobs of {OTHER}: sudo"):
        made.submit(Submission("gw-1", Path("/r"), Path("/o"), unix_user=OTHER))
    with pytest.raises(ClusterUnreachable):
        made.cancel(["gw-1"], unix_user=OTHER)


def test_a_user_who_is_gone_is_named():
    made, calls = cluster({"scontrol": FakeAnswer(stdout=OPEN)})
    with pytest.raises(SubmitRejected, match="no Unix user nosuchuser"):
        made.submit(Submission("gw-1", Path("/r"), Path("/o"), unix_user="nosuchuser"))
    with pytest.raises(ClusterUnreachable, match="no Unix user nosuchuser"):
        made.cancel(["gw-1"], unix_user="nosuchuser")
    assert [call.argv[0] for call in calls] == ["scontrol"]
    assert uid_of("nosuchuser") is None


def test_a_user_who_was_here_today_and_is_not_found_now_is_away_not_gone(monkeypatch):
    made, calls = cluster({"scontrol": FakeAnswer(stdout=OPEN)})
    clock = FakeClock()
    monkeypatch.setattr(run_as, "_CLOCK", clock)
    monkeypatch.setattr(run_as, "_seen", {})
    assert uid_of(OTHER) == pwd.getpwnam(OTHER).pw_uid

    def silent(name):
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", silent)
    with pytest.raises(AccountAway, match=f"{OTHER}, who was known here today"):
        uid_of(OTHER)
    # Slurm has certainly not got it, and may get it later.
    with pytest.raises(ClusterUnreachable, match="directory service"):
        made.submit(Submission("gw-1", Path("/r"), Path("/o"), unix_user=OTHER))
    with pytest.raises(ClusterUnreachable, match="directory service"):
        made.cancel(["gw-1"], unix_user=OTHER)
    assert [call.argv[0] for call in calls] == ["scontrol"]
    clock.advance(86400.0)
    assert uid_of(OTHER) is None


OF_ANOTHER = Submission("gw-1", Path("/r/job.slurm"), Path("/r/slurm.out"), unix_user=OTHER)
UNKNOWN_JOB = FakeAnswer(1, stderr="slurm_load_jobs error: Invalid job id specified\n")


def private(level, configurations=(HIDDEN,), *, root=False):
    """Slurm that may show jobs to their own user only; what the accounts say the worker's user is.

    The last of the configurations holds for all later questions.
    """
    left = list(configurations)

    def scontrol(call):
        if "job" in call.argv:
            return UNKNOWN_JOB
        return FakeAnswer(stdout=left.pop(0) if len(left) > 1 else left[0])

    answers = {"squeue": FakeAnswer(), "scontrol": scontrol}
    answers |= dict.fromkeys(("sudo", "/usr/bin/setpriv", "setpriv"), FakeAnswer(stdout="77\n"))
    if level is not None:
        answers["sacctmgr"] = level
    return cluster(answers, root=root, other_users=lambda: (OTHER,))


@pytest.mark.parametrize(
    "level", [None, FakeAnswer(stdout="None\n"), FakeAnswer(1, stderr="sacctmgr: error: no accounts")]
)
def test_jobs_that_the_worker_could_not_see_are_not_submitted(level):
    made, calls = private(level)
    with pytest.raises(SubmitRejected, match="make worker an operator"):
        made.submit(OF_ANOTHER)
    assert "sudo" not in [call.argv[0] for call in calls]


@pytest.mark.parametrize(
    "level",
    [
        FakeAnswer(takes_seconds=1000.0),
        FakeAnswer(1, stderr="sacctmgr: error: Problem talking to the database: Connection refused"),
    ],
)
def test_accounts_that_cannot_be_asked_for_a_while_are_no_reason_to_refuse_a_job(level):
    """A job that came while slurmdbd was being restarted ended as an error."""
    made, calls = private(level)
    with pytest.raises(ClusterUnreachable) as caught:
        made.submit(OF_ANOTHER)
    assert not isinstance(caught.value, JobsHidden)
    assert "sudo" not in [call.argv[0] for call in calls]


@pytest.mark.parametrize(
    "how",
    [
        {"level": FakeAnswer(stdout="Operator\n")},
        {"level": FakeAnswer(stdout="Administrator\n")},
        {"level": None, "configurations": (HIDDEN + "SlurmUser = worker(1000)\n",)},
        {"level": None, "configurations": (OPEN,)},
    ],
)
def test_who_sees_all_jobs_is_asked_once_in_ten_minutes(how):
    made, calls = private(**how)
    for _ in range(3):
        made.submit(OF_ANOTHER)
    assert [call.argv[0] for call in calls].count("scontrol") == 1


def test_root_sees_all_jobs():
    made, calls = private(None, root=True)
    made.submit(OF_ANOTHER)
    assert made.describe("77") is None
    assert ("scontrol", "show", "config") not in [call.argv for call in calls]


def test_a_job_that_may_only_be_hidden_is_not_gone():
    made, _ = private(FakeAnswer(stdout="None\n"))
    with pytest.raises(JobsHidden):
        made.describe("77")
    with pytest.raises(JobsHidden):
        made.find("gw-1", OTHER)
    assert made.find("gw-1") == ()
    # What was seen before does not count when a job seems to be gone.
    made, _ = private(None, (OPEN, HIDDEN))
    made.submit(OF_ANOTHER)
    with pytest.raises(JobsHidden):
        made.describe("77")
    operator, _ = private(FakeAnswer(stdout="Operator\n"))
    assert operator.describe("77") is None
    assert operator.find("gw-1", OTHER) == ()


def runs_through(tmp_path, line, *, uid=None, clock=None):
    """Run files whose program is a line of bash."""
    started = []

    def start():
        started.append(line)
        return Conversation(["/bin/bash", "-c", line])

    made = UserRunFiles(
        OTHER,
        tmp_path / "r",
        uid=os.getuid() if uid is None else uid,
        transfers=tmp_path,
        start=start,
        clock=clock or FakeClock(),
    )
    return made, started


@pytest.mark.parametrize(
    ("line", "words", "is_refused"),
    [
        ("echo 'sudo: a password is required' >&2; exit 1", "sudo: a password is required", True),
        ("echo Welcome to the cluster", "not from girder-slurm-files", False),
        ("exit 1", "ended without a word", False),
        ("echo 'ModuleNotFoundError: x' >&2; exit 1", "ModuleNotFoundError", False),
    ],
)
def test_why_a_user_cannot_be_reached_is_said(tmp_path, line, words, is_refused):
    made, started = runs_through(tmp_path, line)
    with pytest.raises(UserUnreachable, match=words) as found:
        made.prepare()
    assert found.value.is_refused is is_refused
    # Nobody waits for it again for a while.
    with pytest.raises(UserUnreachable, match=words):
        made.events()
    assert len(started) == 1


def test_a_user_who_could_not_be_reached_is_tried_again_after_a_while(tmp_path):
    clock = FakeClock()
    made, started = runs_through(tmp_path, "exit 1", clock=clock)
    for _ in range(3):
        with pytest.raises(UserUnreachable):
            made.claim("gw-1", "x")
        clock.advance(30.0)
    assert len(started) == 3


def test_a_program_that_runs_as_another_user_is_refused(tmp_path):
    root = tmp_path / "r"
    made, _ = runs_through(
        tmp_path, f"exec {sys.executable} -m girder_worker_slurm.cluster.files_program {root}", uid=4242
    )
    with pytest.raises(UserUnreachable, match="runs as the user of the number"):
        made.prepare()


def test_a_user_who_is_not_here_has_no_run_files(tmp_path):
    made = RunsOfUsers(
        f"{tmp_path}/{{user}}",
        program="/bin/false",
        transfers=tmp_path,
        run_as=RunAs(is_root=False),
        environment={},
        clock=FakeClock(),
    )
    with pytest.raises(UserUnreachable, match="no Unix user nosuchuser"):
        made("nosuchuser")
    assert made(OTHER).path("gw-1") == tmp_path / OTHER / "run" / "gw-1"
    assert made(OTHER) is made(OTHER)
    assert made.users() == (OTHER,)


def test_a_machine_without_sudo_is_told_so_at_once(tmp_path):
    made = RunsOfUsers(
        f"{tmp_path}/{{user}}",
        program="/bin/true",
        transfers=tmp_path,
        run_as=RunAs(is_root=False),
        environment={"PATH": str(tmp_path)},
        clock=FakeClock(),
    )
    with pytest.raises(UserUnreachable, match="'sudo' is not on the PATH") as found:
        made(OTHER).prepare()
    assert found.value.is_refused


def test_many_jobs_of_a_user_whom_the_worker_does_not_see_any_more_are_cancelled_by_their_names():
    """The listing was empty, and the cancel forgotten without a word."""
    made, calls = private(FakeAnswer(stdout="None\n"))
    made.cancel([f"gw-{number}" for number in range(5)], unix_user=OTHER)
    orders = [call.argv for call in calls if "scancel" in call.argv]
    assert [argv[-1] for argv in orders] == [f"--name=gw-{number}" for number in range(5)]


def test_many_jobs_that_are_gone_are_no_orders_where_the_worker_sees_all():
    made, calls = private(FakeAnswer(stdout="Operator\n"))
    made.cancel([f"gw-{number}" for number in range(5)], unix_user=OTHER)
    assert not [call.argv for call in calls if "scancel" in call.argv]
