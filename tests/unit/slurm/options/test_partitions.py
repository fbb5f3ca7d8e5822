"""What partitions give to jobs that do not say, and what a job's options become by it."""

from __future__ import annotations

import math

import pytest

from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cluster.partition_list import PartitionList
from girder_worker_slurm.errors import ClusterUnreachable
from girder_worker_slurm.job.job_request import job_request
from girder_worker_slurm.options.limits import parse_limits
from girder_worker_slurm.options.partitions import Partition, parse_partitions, used_partitions
from girder_worker_slurm.options.requests import OptionRules

# Lines of `scontrol --oneliner show partition` of 22.05.8, shortened.
LISTING = (
    "PartitionName=normal AllowGroups=ALL Default=YES QoS=N/A DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=UNLIMITED"
    " State=UP TotalCPUs=216 TotalNodes=3 TRES=cpu=216,mem=48000M,node=3,billing=216\n"
    "PartitionName=short Default=NO DefaultTime=00:30:00 MaxTime=02:00:00 TotalNodes=2 TRES=cpu=8,mem=1.50T,node=2\n"
    "PartitionName=long Default=NO DefaultTime=NONE MaxTime=7-00:00:00 TotalNodes=4 TRES=cpu=4,mem=4M,node=4\n"
    "PartitionName=empty Default=NO DefaultTime=NONE MaxTime=1-00:00:00 TotalNodes=0 TRES=(null)\n"
)
ALL = parse_partitions(LISTING)


def test_partitions_are_read_as_slurm_writes_them():
    assert {
        "normal": Partition("normal", is_default=True, node_memory_mib=16000.0),
        "short": Partition("short", False, 30, 120, node_memory_mib=1.5 * 1024**2 / 2),
        "long": Partition("long", False, 7 * 24 * 60, 7 * 24 * 60, node_memory_mib=1.0),
        "empty": Partition("empty", False, 24 * 60, 24 * 60, node_memory_mib=None),
    } == ALL
    assert [name for name, found in ALL.items() if not found.counts_memory] == ["long"]
    assert math.isinf(ALL["normal"].most_minutes)


def test_a_job_without_a_partition_goes_to_the_default():
    assert used_partitions({}, ALL) == (ALL["normal"],)
    assert used_partitions({"partition": "short,other"}, ALL) == (ALL["short"], None)
    assert used_partitions({}, {}) == (None,)


def chosen(site, limits, *, partitions=ALL, head=(), wishes=ResourceWishes()):  # noqa: B008 - frozen
    asked = job_request(
        OptionRules(site=tuple(site.items()), limits=parse_limits(limits)),
        image="a", cli="", labels={}, parameters={}, arguments=(),
    )  # fmt: skip
    return asked.chosen(wishes, head=head, partitions=lambda: partitions)


@pytest.mark.parametrize(
    ("partition", "limit", "time"),
    [
        ("normal", "1:00:00", "60"),
        ("short", "1:00:00", None),
        ("short", "0:20:00", "20"),
        ("long", "1-0", "1440"),
        ("long", "30-0", None),
        ("short,long", "1:00:00", "60"),
        ("unknown", "1:00:00", "60"),
        ("normal", "unlimited", None),
    ],
)
def test_a_job_that_names_no_time_gets_the_limit_where_its_partition_would_give_more(partition, limit, time):
    found = chosen({"partition": partition}, {"time": limit}).options
    assert {option.name: option.value for option in found}.get("time") == time
    if time is not None:
        assert found[-1].origin == "[slurm.limits] time"


def test_a_time_that_is_named_stays():
    assert [o.value for o in chosen({"time": "9-0"}, {"time": "60"}).options] == ["9-0"]
    assert not chosen({}, {"time": "60"}, head=("#SBATCH -t 100",)).options


def test_memory_that_slurm_cannot_count_is_left_out_and_named():
    found = chosen({"partition": "long", "mem": "4G"}, {}, wishes=ResourceWishes(cpus=2))
    assert [option.name for option in found.options] == ["partition", "cpus-per-task"]
    assert found.uncounted == ("mem=4G",)


@pytest.mark.parametrize("partition", ["normal", "short", "empty", "unknown", "long,normal"])
def test_memory_is_asked_for_wherever_slurm_may_know_of_it(partition):
    found = chosen({"partition": partition, "mem": "4G"}, {})
    assert ("mem", "4G") in [(option.name, option.value) for option in found.options]
    assert found.uncounted == ()


def test_nobody_asks_slurm_for_what_does_not_matter():
    def ask():
        raise AssertionError

    asked = job_request(OptionRules(), image="a", cli="", labels={}, parameters={}, arguments=())
    assert asked.chosen(ResourceWishes(cpus=2), partitions=ask).options


def test_slurm_is_asked_once_in_a_while_and_a_refusal_later_changes_nothing():
    clock, asked = FakeClock(), []

    def ask():
        asked.append(clock.monotonic())
        if len(asked) in (1, 3):
            msg = "frozen"
            raise ClusterUnreachable(msg)
        return ALL

    partitions = PartitionList(ask, clock)
    with pytest.raises(ClusterUnreachable):
        partitions()
    assert partitions() == ALL
    clock.sleep(599)
    assert partitions() == ALL
    assert len(asked) == 2
    clock.sleep(2)
    assert partitions() == ALL
    assert len(asked) == 3
