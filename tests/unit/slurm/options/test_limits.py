from __future__ import annotations

import pytest

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.layers import ChosenOption
from girder_worker_slurm.options.limits import check_limits, nodes_within, parse_limits

LIMITS = parse_limits({"time": "1-0", "mem": "64G", "cpus": "16", "gpus": "2", "nodes": "2"})


def asked(**options):
    return tuple(
        ChosenOption(name.replace("_", "-"), value, "The user", is_request=True)
        for name, value in options.items()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"time": "24:00:00"}, {"mem": "64G"}, {"mem_per_cpu": "4G", "cpus_per_task": "16"}, {"cpus_per_task": "16"},
        {"ntasks": "4", "cpus_per_task": "4"}, {"gres": "gpu:2"}, {"gpus": "a100:2"}, {"nodes": "1-2"},
        {"ntasks_per_node": "8", "nodes": "2"}, {"constraint": "big"},
        {"cpus_per_task": "8", "hint": "nomultithread"}, {"cpus_per_task": "16", "hint": "multithread"},
        {"cpus_per_task": "16", "threads_per_core": "2"}, {"mem_per_cpu": "5G", "cpus_per_task": "8", "hint": "compute_bound"},
        {"extra_node_info": "2:8"}, {"extra_node_info": "2:4:2"}, {"extra_node_info": "1:8:1"}, {"extra_node_info": "1:8:*"},
        {"mem_per_cpu": "8G", "extra_node_info": "1:8:1"},
    ],
)  # fmt: skip
def test_up_to_the_limit_a_job_may_ask(options):
    check_limits(asked(**options), LIMITS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": "1-00:01"}, "1441 minutes, more than the 1440"),
        ({"time": "unlimited"}, "unlimited minutes"),
        ({"mem": "65G"}, "66560 MiB of memory, more than the 65536"),
        ({"mem": "0"}, "unlimited MiB"),
        ({"mem_per_cpu": "4G", "cpus_per_task": "17"}, "MiB of memory"),
        ({"mem_per_gpu": "40G", "gpus": "2"}, "MiB of memory"),
        ({"cpus_per_task": "17"}, "17 processors"),
        ({"ntasks": "5", "cpus_per_task": "4"}, "20 processors"),
        ({"ntasks_per_node": "9", "nodes": "2"}, "18 processors"),
        ({"cpus_per_task": "9", "hint": "nomultithread"}, "18 processors"),
        ({"cpus_per_task": "9", "hint": "compute_bound"}, "18 processors"),
        ({"cpus_per_task": "9", "threads_per_core": "1"}, "18 processors"),
        ({"ntasks": "9", "ntasks_per_core": "1"}, "18 processors"),
        ({"cpus_per_task": "9", "threads_per_core": "01"}, "18 processors"),
        ({"ntasks": "9", "ntasks_per_core": "01"}, "18 processors"),
        ({"extra_node_info": "1:9:1"}, "18 processors"),
        ({"cpus_per_task": "9", "extra_node_info": "1:1:01"}, "18 processors"),
        ({"mem_per_cpu": "8G", "extra_node_info": "1:9:1"}, "MiB of memory"),
        ({"mem_per_cpu": "5G", "ntasks": "7", "ntasks_per_core": "1"}, "MiB of memory"),
        ({"gres": "gpu:3"}, "3 GPUs"),
        ({"gpus_per_node": "2", "nodes": "2"}, "4 GPUs"),
        ({"gpus_per_task": "1", "ntasks": "3"}, "3 GPUs"),
        ({"nodes": "2-3"}, "3 nodes"),
        ({"time": "00"}, "unlimited minutes"),
        ({"time_min": "2-0"}, "2880 minutes"),
        ({"time": "0:00"}, "unlimited minutes"),
        ({"time": "0-0"}, "unlimited minutes"),
        ({"exclusive": ""}, "unlimited processors"),
        ({"cpus_per_gpu": "17", "gpus": "1"}, "17 processors"),
        ({"nodes": "2", "cpus_per_task": "9"}, "18 processors"),
        ({"gpus": "2", "ntasks_per_gpu": "9"}, "18 processors"),
        ({"mincpus": "9", "nodes": "2"}, "18 processors"),
        ({"gpus_per_socket": "2", "sockets_per_node": "2"}, "4 GPUs"),
        ({"gres": "gpu:1k"}, "1024 GPUs"),
        ({"gres": "gpu:" + "9" * 30}, "1e.09 GPUs"),
        ({"mem": "1G", "mem_per_cpu": "65G"}, "MiB of memory"),
        ({"mem_per_gpu": "33G", "gpus_per_task": "1", "ntasks": "2"}, "MiB of memory"),
        # On each node there is room for eight, and three nodes are needed for three with one on each (seen: 22.05.8).
        ({"ntasks": "4", "ntasks_per_node": "9", "nodes": "2"}, "18 processors"),
        ({"ntasks": "3", "ntasks_per_node": "1"}, "3 nodes"),
        ({"ntasks": "2", "ntasks_per_node": "1", "gres": "gpu:2"}, "4 GPUs"),
        ({"extra_node_info": "2:9"}, "18 processors"),
        # sbatch takes these as it takes `gpu:3`.
        ({"gres": "gres:gpu:3"}, "3 GPUs"),
        ({"gres": "gpu:2,gres:gpu:1"}, "3 GPUs"),
    ],
)
def test_beyond_it_the_job_is_refused_in_words(options, words):
    with pytest.raises(OptionRefused, match=words) as seen:
        check_limits(asked(**options), LIMITS)
    assert str(seen.value).startswith("The user: ")


@pytest.mark.parametrize(
    "options",
    [
        {"exclusive": "user"},
        {"mem_per_cpu": "4G", "cpus_per_task": "8", "nodes": "2"},
        {"mem_per_cpu": "4G", "ntasks_per_node": "8", "nodes": "2"},
    ],
)
def test_memory_is_of_one_node_and_nodes_may_be_kept_for_one_user(options):
    check_limits(asked(**options), LIMITS)


def test_tasks_of_a_node_multiply_what_the_site_gives_each_processor():
    with pytest.raises(OptionRefused, match="MiB of memory"):
        check_limits(
            (ChosenOption("mem-per-cpu", "16G", "[slurm.options]"), *asked(ntasks_per_node="8")), LIMITS
        )


@pytest.mark.parametrize(
    ("name", "value"), [("mem", "16.5G"), ("ntasks", "²"), ("cpus-per-task", "9" * 5000)]
)
def test_what_the_site_writes_in_its_own_way_is_for_slurm_to_read(name, value):
    check_limits((ChosenOption(name, value, "[slurm.options]"), *asked(time="60")), LIMITS)


def test_what_the_site_sets_itself_is_not_held_against_a_job():
    check_limits((ChosenOption("mem", "500G", "[slurm.options]"), *asked(time="60")), LIMITS)


def test_a_request_that_multiplies_what_the_site_sets_is_looked_at():
    with pytest.raises(OptionRefused, match="MiB of memory"):
        check_limits(
            (ChosenOption("mem-per-cpu", "8G", "[slurm.options]"), *asked(cpus_per_task="10")), LIMITS
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tres_per_task": "cpu=4,gres/gpu=1", "ntasks": "3"}, "3 GPUs"),
        ({"tres_per_task": "cpu:8", "ntasks": "3"}, "24 processors"),
        ({"tres_per_task": "gres:gpu:a100:3"}, "3 GPUs"),
        ({"tres_per_task": "gres/gpu:a100=3"}, "3 GPUs"),
    ],
)
def test_what_each_task_is_to_have_is_counted(options, words):
    with pytest.raises(OptionRefused, match=words):
        check_limits(asked(**options), LIMITS)


def test_of_two_ways_to_name_gpus_the_larger_counts_as_it_does_for_slurm():
    # sbatch --gres=gpu:1 --gpus=2 is two GPUs on two nodes, not three (seen: 22.05.8).
    check_limits(asked(gres="gpu:1", gpus="2"), LIMITS)


def test_without_limits_everything_is_allowed():
    check_limits(asked(mem="0", time="unlimited", gpus="999"), parse_limits({}))


@pytest.mark.parametrize(
    "values", [{"memory": "1G"}, {"time": "soon"}, {"mem": "lots"}, {"cpus": "-1"}, {"gpus": "x"}]
)
def test_a_limit_that_is_none_is_an_error(values):
    with pytest.raises(ValueError, match=next(iter(values)) if "mem" not in values else "memory"):
        parse_limits(values)


@pytest.mark.parametrize("whole", ["exclusive", "core_spec"])
@pytest.mark.parametrize("memory", ["mem_per_cpu", "mem_per_gpu"])
def test_memory_for_each_processor_of_a_whole_node_is_all_that_it_has(whole, memory):
    """Seen with 22.05.8: `--exclusive --mem-per-cpu=100M` gets 7200M of a node with 72 processors."""
    limits = parse_limits({"mem": "64G"})
    with pytest.raises(OptionRefused, match="unlimited MiB of memory"):
        check_limits(asked(**{whole: "1" if whole == "core_spec" else "", memory: "1G"}), limits)
    check_limits(asked(exclusive="user", mem_per_cpu="1G"), limits)
    check_limits(asked(exclusive="", mem="64G"), limits)


def test_whole_nodes_with_memory_for_each_processor_may_be_the_site_s_own_choice():
    site = (ChosenOption("exclusive", "", "the site"), ChosenOption("mem-per-cpu", "1G", "the site"))
    check_limits((*site, *asked(cpus_per_task="2")), parse_limits({"mem": "64G"}))
    with pytest.raises(OptionRefused, match="unlimited MiB of memory"):
        check_limits((site[0], *asked(mem_per_cpu="1G")), parse_limits({"mem": "64G"}))


def test_what_the_head_of_a_site_s_script_says_counts_with_what_is_asked():
    head = {"ntasks": "4", "mem-per-cpu": "3G", "nodes": "2"}
    check_limits((), LIMITS, head)
    check_limits(asked(cpus_per_task="4"), LIMITS, head)
    with pytest.raises(OptionRefused, match="20 processors"):
        check_limits(asked(cpus_per_task="5"), LIMITS, head)
    with pytest.raises(OptionRefused, match="4 GPUs"):
        check_limits(asked(gpus_per_node="2"), LIMITS, head)


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ({"ntasks": "100"}, 2),
        ({"gpus": "4"}, 2),
        ({"gres": "gpu:2", "ntasks": "100"}, 1),
        ({"gpus_per_node": "1", "ntasks": "100"}, 2),
        ({"ntasks": "4", "ntasks_per_node": "4", "cpus_per_task": "4"}, 1),
        ({"ntasks": "2", "mincpus": "9"}, 1),
        ({"spread_job": ""}, 2),
        ({"ntasks": "100", "nodes": "1"}, None),
        ({"gres": "gpu:2"}, None),
        ({"cpus_per_task": "16", "mem": "1G"}, None),
    ],
)
def test_a_job_that_slurm_may_spread_is_told_on_how_many_nodes(said, most):
    options = {option.name: option.value for option in asked(**said)}
    assert nodes_within(options, options.keys(), LIMITS) == most
    assert nodes_within(options, set(), LIMITS) is None
    assert nodes_within(options, options.keys(), parse_limits({"time": "1"})) is None


def test_tasks_on_several_nodes_have_the_memory_of_those_on_one():
    check_limits(asked(ntasks="8", ntasks_per_node="4", nodes="2", mem_per_cpu="16G"), LIMITS)
    with pytest.raises(OptionRefused, match="MiB of memory"):
        check_limits(asked(ntasks="8", ntasks_per_node="4", nodes="2", mem_per_cpu="17G"), LIMITS)


def test_more_nodes_and_processors_may_be_the_site_s_own_choice():
    nodes, mincpus = (ChosenOption(*said, "the site") for said in (("nodes", "3"), ("mincpus", "9")))
    check_limits((nodes, mincpus, *asked(ntasks="3", mem="1G")), LIMITS)
    with pytest.raises(OptionRefused, match="3 nodes"):
        check_limits((nodes, *asked(ntasks="3", ntasks_per_node="1")), LIMITS)
    with pytest.raises(OptionRefused, match="18 processors"):
        check_limits((mincpus, *asked(nodes="2")), LIMITS)
