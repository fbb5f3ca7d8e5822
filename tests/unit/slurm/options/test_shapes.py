"""`cpus`, `tasks` and `shape` in sbatch's terms."""

from __future__ import annotations

import pytest

from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.job.job_request import job_request
from girder_worker_slurm.options.limits import parse_limits
from girder_worker_slurm.options.requests import OptionRules, check_site_options, parse_profile
from girder_worker_slurm.options.shapes import plain_options


def plain(**options):
    pairs = tuple((name.replace("_", "-"), value) for name, value in options.items())
    return dict(plain_options(pairs))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"mem": "4G", "c": "2"}, {"mem": "4G", "c": "2"}),
        ({"cpus": "8"}, {"cpus-per-task": "8"}),
        (
            {"cpus": "8", "shape": "single", "mem": "16G"},
            {"ntasks": "1", "cpus-per-task": "8", "mem": "16G"},
        ),
        (
            {"cpus": "8", "shape": "distributed", "mem": "16G"},
            {"ntasks": "8", "cpus-per-task": "1", "mem-per-cpu": "2048M"},
        ),
        (
            {"cpus": "3", "shape": "distributed", "mem": "1000"},
            {"ntasks": "3", "cpus-per-task": "1", "mem-per-cpu": "334M"},
        ),
        ({"cpus": "8", "tasks": "3"}, {"ntasks": "3", "cpus-per-task": "3"}),
        ({"tasks": "4"}, {"ntasks": "4"}),
        ({"tasks": "4", "shape": "distributed"}, {"ntasks": "4", "cpus-per-task": "1"}),
        ({"cpus": "8", "ntasks": "2"}, {"ntasks": "2", "cpus-per-task": "4"}),
        (
            {"cpus": "8", "shape": "distributed", "mem": "0"},
            {"ntasks": "8", "cpus-per-task": "1", "mem": "0"},
        ),
        ({"cpus": "8", "shape": "distributed", "mem": "1.5G"}, {"ntasks": "8", "cpus-per-task": "1", "mem": "1.5G"}),
        ({"shape": "single"}, {"ntasks": "1"}),
        ({"cpus": "8", "ntasks-per-node": "2", "shape": "distributed"}, {"ntasks-per-node": "2", "cpus-per-task": "4"}),
        ({"cpus": "16", "ntasks-per-node": "2", "nodes": "2"}, {"ntasks-per-node": "2", "nodes": "2", "cpus-per-task": "4"}),
    ],
)  # fmt: skip
def test_a_shape_becomes_options_of_sbatch(said, expected):
    assert plain(**said) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((("shape", "round"),), "`shape` to 'round', which is not `single` or `distributed`"),
        ((("cpus", "many"),), "`cpus` to 'many', which is not a whole number"),
        ((("tasks", ""),), "`tasks` to nothing"),
    ],
)
def test_a_site_s_own_shape_is_checked_for_slurm_does_not_know_it(options, words):
    with pytest.raises(ValueError, match=words):
        check_site_options(options)


def request(site=(), profiles=(), labels=None, arguments=(), **rules):
    return job_request(
        OptionRules(site=tuple(site), profiles=tuple(parse_profile(*p) for p in profiles), **rules),
        image="team/tool:1",
        cli="Do",
        labels=labels or {},
        parameters={},
        arguments=arguments,
    )


def chosen(asked, wishes=ResourceWishes(), **more):  # noqa: B008 - frozen
    return {option.name: option.value for option in asked.chosen(wishes, **more).options}


def test_who_comes_later_changes_one_side_of_a_shape():
    site = (("shape", "distributed"), ("cpus", "4"))
    assert chosen(request(site, arguments=(("cpus", "8"),))) == {"ntasks": "8", "cpus-per-task": "1"}
    assert chosen(request(site, labels={"slurm.shape": "single"})) == {"ntasks": "1", "cpus-per-task": "4"}
    assert chosen(request(site, arguments=(("cpus-per-task", "3"),)))["cpus-per-task"] == "3"
    assert chosen(request((("c", "2"),), arguments=(("cpus", "8"),))) == {"cpus-per-task": "8"}


def test_docker_s_processors_raise_those_of_a_shape_and_keep_its_tasks():
    site = (("shape", "distributed"), ("cpus", "4"))
    assert chosen(request(site), ResourceWishes(cpus=2)) == {"ntasks": "4", "cpus-per-task": "1"}
    assert chosen(request(site), ResourceWishes(cpus=8)) == {"ntasks": "4", "cpus-per-task": "2"}


def test_a_shape_that_is_asked_for_is_held_to_the_limits():
    asked = request(limits=parse_limits({"cpus": "8"}), arguments=(("cpus", "9"),))
    with pytest.raises(OptionRefused, match="--slurm_cpus: the job asks for 9 processors"):
        chosen(asked)
    asked = request(limits=parse_limits({"cpus": "8"}), arguments=(("cpus", "9"), ("shape", "distributed")))
    with pytest.raises(OptionRefused, match="the job asks for 9 processors"):
        chosen(asked)


def test_jobs_with_gpus_have_a_partition_account_and_time_of_their_own_whatever_the_limits():
    gpu_options = {"gres": "gpu:{gpus}", "partition": "gpu", "account": "gpu", "qos": "g", "mem": "64G", "time": "2-0", "cpus": "16"}  # fmt: skip
    limits = parse_limits({"mem": "32G", "time": "60", "cpus": "8", "gpus": "2"})
    asked = request((("partition", "normal"), ("cpus", "2")), limits=limits)
    assert chosen(asked, ResourceWishes(gpus=2), gpu_options=gpu_options) == {
        "partition": "gpu", "gres": "gpu:2", "account": "gpu", "qos": "g", "mem": "64G", "time": "2-0", "cpus-per-task": "16",
    }  # fmt: skip
    with pytest.raises(OptionRefused, match="3 GPUs"):
        chosen(asked, ResourceWishes(gpus=3), gpu_options=gpu_options)
    mem = request(limits=limits, arguments=(("mem", "33G"),))
    with pytest.raises(OptionRefused, match="MiB of memory"):
        chosen(mem, ResourceWishes(gpus=1), gpu_options=gpu_options)
