"""What Slurm's commands are asked, and how their answers are read, banners included."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_slurm.cluster import slurm_commands as commands
from girder_worker_slurm.cluster.interface import SlurmJobId, Submission

SCONTROL = (
    "JobId=77 JobName=gw-1 UserId=alice(1000) GroupId=alice(1000) MCS_label=N/A Priority=4294901757 Nice=0 "
    "Account=(null) QOS=(null) JobState=OUT_OF_MEMORY Reason=OutOfMemory Dependency=(null) Requeue=0 Restarts=2 "
    "BatchFlag=1 Reboot=0 ExitCode=0:125 RunTime=00:00:03 TimeLimit=UNLIMITED TimeMin=N/A "
    "NodeList=gs[1-2] BatchHost=gs1 NumNodes=1 Command=/run dir/job.slurm WorkDir=/ StdErr=/run dir/slurm.out"
)


@pytest.mark.parametrize(
    "stdout",
    [
        "77\n",
        "77;cluster-a\n",
        "Welcome to the cluster!\n77\n",
        "77\n\n*** Maintenance on 2026-12-01 ***\n",
        "warning: 90% of your 100 hours are used\n  77  \n",
        "sbatch: loaded module 12 of 13\r\n77;c\r\n",
    ],
)
def test_the_id_is_found_among_banners(stdout):
    assert commands.parse_sbatch(stdout) == "77"


@pytest.mark.parametrize(
    "stdout", ["", "\n", "Submitted batch job", "77 jobs are waiting", "-1", "7.5", "%77"]
)
def test_an_answer_without_an_id_is_none(stdout):
    assert commands.parse_sbatch(stdout) is None


def test_a_submission_is_one_list_of_arguments_with_the_script_last():
    submission = Submission(
        "gw-1", Path("/r/job.slurm"), Path("/r/slurm.out"), (("mem", "4G"), ("p", "low"), ("exclusive", ""))
    )
    argv = commands.sbatch_arguments(submission)
    assert argv[0] == "sbatch"
    assert argv[-1] == "/r/job.slurm"
    assert argv[-5:-1] == ["--mem=4G", "-p", "low", "--exclusive"]
    assert {
        "--parsable",
        "--job-name=gw-1",
        "--output=/r/slurm.out",
        "--no-requeue",
        "--open-mode=append",
    } < set(argv)


@pytest.mark.parametrize("name", sorted(commands.RESERVED_OPTIONS))
def test_options_that_the_worker_sets_cannot_be_chosen(name):
    with pytest.raises(ValueError, match="set by the worker itself"):
        commands.option_arguments([(name, "x")])


@pytest.mark.parametrize("name", ["", "-p", "--mem", "mem=4G", "a b", "mem\n", "ümlaut", "1", "mem-", "; rm"])
def test_a_malformed_option_is_refused(name):
    with pytest.raises(ValueError, match="not the name"):
        commands.option_arguments([(name, "x")])


@given(st.text(alphabet=[chr(code) for code in (*range(32), 127)], min_size=1), st.text())
def test_a_value_with_control_characters_is_refused(bad, around):
    with pytest.raises(ValueError, match="control characters"):
        commands.option_arguments([("comment", around + bad + around)])


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs")), min_size=1))
def test_every_other_value_stays_one_argument(value):
    assert commands.option_arguments([("comment", value)]) == [f"--comment={value}"]
    assert commands.option_arguments([("p", value)]) == ["-p", value]


@pytest.mark.fault("squeue prints a banner", phases=("pending", "running"))
def test_the_listing_is_read_row_by_row_and_banners_are_passed_over():
    rows = commands.parse_squeue(
        "* * * maintenance | tomorrow | at | 8 * * *\n"
        "11|RUNNING|None|ada|gw-1\n"
        "\n"
        "12|PENDING|Resources|ada|gw-2\n"
        "13|CANCELLED by 1000|None|bob|gw-3\n"
        "14|COMPLETED+|None|ada|gw-4\n"
        "15_[1-3%2]|PENDING|None|ada|array\n"
        "half a row|\n"
    )
    assert [(row.slurm_job_id, row.state, row.reason, row.unix_user, row.token) for row in rows] == [
        ("11", "RUNNING", "None", "ada", "gw-1"),
        ("12", "PENDING", "Resources", "ada", "gw-2"),
        ("13", "CANCELLED", "None", "bob", "gw-3"),
        ("14", "COMPLETED", "None", "ada", "gw-4"),
    ]


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs", "Z"))))
def test_a_stranger_may_name_a_job_anything(name):
    lines = f"5|RUNNING|None|ada|{name}\n"
    if len(lines.splitlines()) == 1:
        assert [row.token for row in commands.parse_squeue(lines)] == [name.strip()]


def test_a_name_with_bars_does_not_shift_the_columns():
    (row,) = commands.parse_squeue("5|RUNNING|None|ada|6|COMPLETED|None|ada|gw-1\n")
    assert (row.slurm_job_id, row.state, row.token) == ("5", "RUNNING", "6|COMPLETED|None|ada|gw-1")


def test_a_job_is_read_from_scontrols_line_among_banners():
    detail = commands.parse_scontrol(f"Welcome!\n{SCONTROL}\nBye, 100% up.\n")
    assert (detail.slurm_job_id, detail.token, detail.state, detail.reason) == (
        "77",
        "gw-1",
        "OUT_OF_MEMORY",
        "OutOfMemory",
    )
    assert (detail.exit_code, detail.signal, detail.nodes, detail.restarts) == (0, 125, "gs[1-2]", 2)
    assert (detail.run_time, detail.time_limit) == ("00:00:03", "UNLIMITED")


@pytest.mark.parametrize("stdout", ["", "No jobs in the system\n", "banner only\n"])
def test_no_job_in_scontrols_answer_is_none(stdout):
    assert commands.parse_scontrol(stdout) is None


def test_a_pending_job_has_no_nodes():
    assert (
        commands.parse_scontrol("JobId=1 JobName=x JobState=PENDING NodeList=(null) ExitCode=0:0").nodes == ""
    )


@pytest.mark.parametrize("job_id", ["", " ", "1,2", "1 2", "*", "1_2", "-1", "1;x", "1\n"])
def test_scontrol_is_never_asked_about_anything_but_one_id(job_id):
    # `scontrol show job ''` answers with every job of the cluster.
    with pytest.raises(ValueError, match="not a Slurm job id"):
        commands.scontrol_arguments(SlurmJobId(job_id))


def test_jobs_are_cancelled_by_name_and_user():
    argvs = commands.scancel_arguments(["gw-1", "gw-2"], "alice", kill=True)
    assert argvs == [
        ["scancel", "--signal=KILL", "--full", "--user=alice", f"--name={token}"]
        for token in ("gw-1", "gw-2")
    ]


def test_nothing_to_cancel_is_no_command_at_all():
    # `scancel --user=x`, or one with an empty name, would end every job of that user.
    assert commands.scancel_arguments([], "alice", kill=False) == []
    assert commands.scancel_arguments([""], "alice", kill=False) == []


@pytest.mark.parametrize(
    "stderr",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
        "sbatch: error: Slurm controller not responding, sleeping and retrying",
    ],
)
def test_a_complaint_about_the_connection_leaves_the_submission_unsure(stderr):
    assert commands.is_unsure(stderr)


@pytest.mark.parametrize(
    "stderr",
    [
        "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        # The words of 22.05.8 for what all jobs of an account, or of a QOS, share.
        "sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
        "sbatch: error: QOSGrpSubmitJobsLimit",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        # MaxJobCount, after 120 s (recorded from 22.05.8)
        (
            "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
            "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n"
        ),
    ],
)
def test_a_submit_limit_is_told_from_a_refusal(stderr):
    assert commands.is_submit_limit(stderr)
    assert not commands.is_unsure(stderr)


@pytest.mark.parametrize(
    "stderr",
    [
        "sbatch: error: invalid partition specified: x",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    ],
)
def test_a_plain_refusal_is_neither_unsure_nor_a_limit(stderr):
    assert not commands.is_unsure(stderr)
    assert not commands.is_submit_limit(stderr)


@pytest.mark.parametrize("name", ["outpu", "job-nam", "wra", "chdi", "expor", "ui", "arra"])
def test_a_reserved_option_cannot_be_chosen_by_the_beginning_of_its_name(name):
    with pytest.raises(ValueError, match="cannot be chosen"):
        commands.option_arguments([(name, "x")])


def test_a_comment_cannot_pretend_another_state():
    line = "JobId=7 JobName=gw-1 JobState=FAILED Reason=None ExitCode=3:0 Comment=x JobState=COMPLETED ExitCode=0:0\n"
    detail = commands.parse_scontrol(line)
    assert (detail.state, detail.exit_code) == ("FAILED", 3)


def test_a_full_queue_concerns_all_users_but_is_in_doubt_when_the_answer_was_lost_too():
    full = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
    assert commands.is_queue_full(full)
    assert not commands.is_queue_full("sbatch: error: QOSMaxSubmitJobPerUserLimit")
    assert commands.is_unsure(f"{full}sbatch: error: Socket timed out on send/recv operation")
