"""What Slurm says of itself, and what of its configuration will surprise."""

from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner
from girder_worker_slurm.doctor import slurm
from tests.unit.slurm.doctor.here import answer, levels


@pytest.mark.parametrize(
    ("version", "ping", "expected"),
    [
        ("slurm 22.05.8", "Slurmctld(primary) at vm is UP", "ok"),
        ("slurm-wlm 25.11.1", "Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP", "ok"),
        ("slurm 20.11.9", "Slurmctld(primary) at vm is UP", "warn"),
        ("slurm 22.05.8", "Slurmctld(primary) at vm is DOWN", "fail"),
        ("slurm 22.05.8", "", "fail"),
    ],
)
def test_the_controller_has_to_answer(version, ping, expected):
    assert levels(slurm.judge_controller(answer(version), answer(ping))) == [expected]


def test_where_slurm_s_configuration_is_can_be_said():
    (finding,) = slurm.judge_controller(answer("slurm 22.05.8"), answer(""))
    assert "SLURM_CONF" in finding.remedy


PARTITIONS = """\
PartitionName=normal AllowGroups=ALL Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=old AllowGroups=ALL Default=NO MaxTime=UNLIMITED State=DRAIN
"""


@pytest.mark.parametrize(
    ("wanted", "listing", "has_script", "expected"),
    [
        ("", PARTITIONS, False, ["ok", "ok"]),
        ("normal", PARTITIONS, False, ["ok"]),
        ("normal,old", PARTITIONS, False, ["ok", "warn"]),
        ("gpu", PARTITIONS, False, ["fail"]),
        ("", PARTITIONS.replace("YES", "NO"), False, ["fail"]),
        ("", PARTITIONS.replace("YES", "NO"), True, ["ok"]),
    ],
)
def test_jobs_need_a_partition_that_is_up(wanted, listing, has_script, expected):
    assert levels(slurm.judge_partition(wanted, listing, has_script=has_script)) == expected


def test_a_partition_that_is_not_set_is_not_called_none():
    first, _ = slurm.judge_partition("", PARTITIONS, has_script=False)
    assert "None" not in first.found
    assert "normal" in first.found


GOOD = {
    "MinJobAge": "300 sec",
    "MaxJobCount": "10000",
    "SelectTypeParameters": "CR_CORE_MEMORY",
    "TaskPlugin": "task/affinity,task/cgroup",
    "DefMemPerNode": "UNLIMITED",
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"MinJobAge": "10 sec"}, "MinJobAge"),
        ({"MaxJobCount": "5000"}, "MaxJobCount"),
        ({"SelectTypeParameters": "CR_CPU"}, "not handed out"),
        ({"TaskPlugin": "task/affinity"}, "does not hold jobs"),
        ({"ConstrainRAMSpace": "no"}, "does not hold jobs"),
        ({"TaskPlugin": "task/none", "JobAcctGatherParams": "OverMemoryKill"}, ""),
        ({"DefMemPerCPU": "64"}, "64 MB per CPU"),
    ],
)
def test_what_of_the_configuration_will_surprise(changes, word):
    found = list(slurm.judge_configuration({**GOOD, **changes}, (), max_submitted=5000, has_script=False))

    assert [word in finding.found for finding in found] == ([True] if word else [])


def test_little_default_memory_does_not_matter_where_memory_is_asked_for():
    assert not list(
        slurm.judge_configuration(
            {**GOOD, "DefMemPerCPU": "64"}, (("mem", "8G"),), max_submitted=10, has_script=False
        )
    )


def test_slurm_commands_are_asked_in_the_configured_directory():
    runner = FakeCommandRunner({"/opt/slurm/bin/scontrol": FakeAnswer(stdout=PARTITIONS)})
    questions = slurm.SlurmQuestions(runner, Path("/opt/slurm/bin"), timeout_seconds=5)

    assert levels(slurm.check_partition(questions, (("p", "normal"),), has_script=False)) == ["ok"]
    assert runner.calls[0].timeout_seconds == 5
