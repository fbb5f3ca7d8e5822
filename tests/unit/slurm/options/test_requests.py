from __future__ import annotations

import pytest

from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.job.job_request import job_request, origins_as_json
from girder_worker_slurm.options.limits import parse_limits
from girder_worker_slurm.options.requests import OptionRules, parse_allowed, parse_profile

SITE = (("mem", "2G"), ("time", "60"))


def request(
    *, profiles=(), cli="Nuclei", image="team/tool:1", labels=None, parameters=None, arguments=(), **rules
):
    return job_request(
        OptionRules(site=SITE, profiles=tuple(parse_profile(*profile) for profile in profiles), **rules),
        image=image,
        cli=cli,
        labels=labels or {},
        parameters=parameters if parameters is not None else {},
        arguments=arguments,
    )


def options(asked, wishes=ResourceWishes(), **more):  # noqa: B008 - frozen
    return {option.name: option.value for option in asked.chosen(wishes, **more).options}


def test_each_who_comes_later_has_the_word():
    places = {
        "profiles": [("team/*", "mem = 3G"), ("team/* Nuc*", "mem = 4G")],
        "labels": {"slurm.mem": "6G"},
        "parameters": {"mem": "7G"},
        "arguments": (("mem", "8G"),),
    }
    assert options(request(**places))["mem"] == "8G"
    del places["arguments"]
    assert options(request(**places))["mem"] == "7G"
    del places["parameters"]
    assert options(request(**places))["mem"] == "6G"
    del places["labels"]
    assert options(request(**places), ResourceWishes(memory_mib=5 * 1024))["mem"] == "5120M"
    assert options(request(**places))["mem"] == "4G"
    assert options(request(**places, cli="Other"))["mem"] == "3G"
    assert options(request(**places, image="other/tool"))["mem"] == "2G"


def test_docker_s_limits_raise_and_never_lower_and_slurm_s_own_terms_do_both():
    assert options(request(), ResourceWishes(memory_mib=100))["mem"] == "2G"
    assert options(request(parameters={"mem": "100M"}), ResourceWishes(memory_mib=4096))["mem"] == "100M"


def test_a_job_of_many_tasks_takes_no_more_nodes_than_the_limits_leave_room_for():
    limits = parse_limits({"nodes": "3", "gpus": "4"})
    asked = request(arguments=(("ntasks", "100"),), limits=limits).chosen(ResourceWishes())
    assert [(o.name, o.value, o.origin) for o in asked.options[-2:]] == [
        ("nodes", "1-3", "[slurm.limits]"),
        ("use-min-nodes", "", "[slurm.limits]"),
    ]
    many_gpus = request(arguments=(("ntasks", "100"), ("gres", "gpu:3")), limits=limits)
    assert options(many_gpus)["nodes"] == "1"
    assert "use-min-nodes" not in options(many_gpus)
    assert "nodes" not in options(request(limits=limits))
    assert options(request(arguments=(("ntasks", "9"), ("nodes", "2")), limits=limits))["nodes"] == "2"
    assert "nodes" not in options(
        request(arguments=(("ntasks", "9"),), limits=limits), head=("#SBATCH -N 1",)
    )


def test_where_each_value_came_from_is_kept():
    asked = request(arguments=(("mem", "8G"),), profiles=[("*", "partition = big")])
    (memory, time, partition) = origins_as_json(asked.chosen(ResourceWishes(memory_mib=4096)).options)
    assert memory == {
        "name": "mem",
        "value": "8G",
        "origin": "The argument --slurm_mem",
        "instead_of": [["mem", "4096M", "Docker's options of the task"], ["mem", "2G", "[slurm.options]"]],
    }
    assert (time["origin"], partition["origin"]) == ("[slurm.options]", "[slurm.profiles] *")


@pytest.mark.parametrize(
    ("places", "gpus"),
    [
        ({"arguments": (("gres", "gpu:2"),)}, 2),
        ({"parameters": {"gpus": 4}}, 4),
        ({"labels": {"slurm.gpus-per-node": "a100:1"}}, 1),
        ({"labels": {"slurm.gpus": "4"}, "arguments": (("gpus", "1"),)}, 1),
        ({"labels": {"slurm.gres": "shard:1"}}, 0),
        ({"profiles": [("*", "gres = gpu:1")]}, 0),
        ({}, 0),
    ],
)
def test_gpus_that_are_named_are_seen(places, gpus):
    assert request(**places).gpus == gpus


def test_gpus_named_in_slurm_s_terms_bring_the_site_s_gpu_partition():
    asked = request(arguments=(("gres", "gpu:a100:2"),))
    found = options(asked, ResourceWishes(gpus=2), gpu_options={"gres": "gpu:{gpus}", "partition": "gpu"})
    assert (found["gres"], found["partition"]) == ("gpu:a100:2", "gpu")


def test_limits_hold_for_docker_s_wishes_as_well():
    asked = request(limits=parse_limits({"mem": "4G"}))
    with pytest.raises(OptionRefused, match="Docker's options of the task: the job asks for 8192 MiB"):
        asked.chosen(ResourceWishes(memory_mib=8192))


def test_docker_s_wishes_need_no_permission_by_name():
    asked = request(allowed=parse_allowed(["time"]))
    assert options(asked, ResourceWishes(memory_mib=4096, cpus=2)) == {
        "mem": "4096M",
        "time": "60",
        "cpus-per-task": "2",
    }


@pytest.mark.parametrize(
    "parameters", ["mem=4G", ["mem"], {"mem": {"a": 1}}, {"account": "x"}, {"mem": "x"}, {"output": "/x"}]
)
def test_docker_params_that_make_no_sense_are_refused_by_name(parameters):
    with pytest.raises(OptionRefused, match="docker-params of the CLI"):
        options(request(parameters=parameters))


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "sets no option"), ("output = x", "only the worker"), ("mem=1G\nJ=x", "only the worker")],
)
def test_a_profile_that_cannot_be_meant_is_an_error(text, words):
    with pytest.raises(ValueError, match=words):
        parse_profile("*", text)


@pytest.mark.parametrize("name", ["output", "nosuch", "o"])
def test_only_options_of_sbatch_can_be_allowed(name):
    with pytest.raises(ValueError, match=f"`{name}` is no option"):
        parse_allowed(["mem", name])
