"""What becomes of Girder's settings in a job."""

from __future__ import annotations

import pytest

from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.job.job_request import job_request
from girder_worker_slurm.options.girder_settings import SETTINGS, checked_setting
from girder_worker_slurm.options.limits import parse_limits
from girder_worker_slurm.options.requests import OptionRules, parse_allowed, parse_profile

SITE = (("mem", "2G"), ("time", "60"))
GPU = ResourceWishes(gpus=1)


def request(told, *, profiles=(), arguments=(), limits=None, allowed=(), site=SITE):
    rules = OptionRules(
        site=tuple(site),
        profiles=tuple(parse_profile(*profile) for profile in profiles),
        limits=parse_limits(limits or {}),
        girder=told,
        girder_allowed=parse_allowed([*OptionRules().allowed.names, *allowed]),
    )
    return job_request(
        rules, image="team/tool:1", cli="Nuclei", labels={}, parameters={}, arguments=tuple(arguments)
    )


def options(told, wishes=ResourceWishes(), gpu_options=None, **rules):  # noqa: B008 - frozen
    chosen = request(told, **rules).chosen(wishes, gpu_options=gpu_options)
    return {option.name: option.value for option in chosen.options}


def test_they_stand_between_the_site_s_options_and_its_profiles():
    told = {
        "mem": 4096,
        "time": "90",
        "cpus": "8",
        "ntasks": 1,
        "partition": "long",
        "gres_config": "lscratch:10",
    }
    assert options(told, profiles=[("team/*", "time = 120")]) == {
        "mem": "4096",
        "time": "120",
        "cpus-per-task": "8",
        "ntasks": "1",
        "partition": "long",
        "gres": "lscratch:10",
    }
    assert options(told, arguments=[("mem", "1G")])["mem"] == "1G"
    assert options(told, ResourceWishes(memory_mib=100, cpus=2))["cpus-per-task"] == "8"


def test_where_they_come_from_is_kept():
    found = {o.name: o for o in request({"mem": "4G"}).chosen(ResourceWishes()).options}
    assert found["mem"].origin == "Girder settings, worker_slurm.mem"
    assert found["mem"].instead_of == (("mem", "2G", "[slurm.options]"),)


@pytest.mark.parametrize(
    ("told", "wishes", "gpu_options", "expected"),
    [
        # Only for jobs that want GPUs.
        ({"gpu": "a100", "gpu_partition": "gpu"}, ResourceWishes(), None, {}),
        ({"gpu": "a100", "gpu_partition": "gpu"}, GPU, None, {"gres": "gpu:a100:1", "partition": "gpu"}),
        ({"gpu": "gpu:a100:2"}, GPU, None, {"gres": "gpu:a100:2"}),
        ({"gpu": "a100:2"}, ResourceWishes(gpus=3), None, {"gres": "gpu:a100:3"}),
        ({"gpu": 2}, GPU, None, {"gres": "gpu:2"}),
        ({"gpu": "gpu"}, GPU, None, {"gres": "gpu:1"}),
        ({"gpu_partition": "gpu", "partition": "long"}, GPU, None, {"gres": "gpu:1", "partition": "gpu"}),
        ({"gres_config": "lscratch:10", "gpu": "a100"}, GPU, None, {"gres": "gpu:a100:1"}),
        # The site's own for such jobs are below them.
        ({"gpu_partition": "gpu"}, GPU, {"gpus": "{gpus}", "partition": "x", "qos": "q"},
         {"gpus": "1", "partition": "gpu", "qos": "q"}),
        ({"gpu": "a100"}, GPU, {"gpus": "{gpus}", "qos": "q"}, {"gres": "gpu:a100:1", "qos": "q"}),
    ],
)  # fmt: skip
def test_what_they_say_about_gpus_is_for_jobs_that_want_some(told, wishes, gpu_options, expected):
    found = options(told, wishes, gpu_options)
    assert {name: value for name, value in found.items() if name not in ("mem", "time")} == expected


def test_a_site_that_gives_every_job_a_gpu_keeps_its_way_beside_girder_s_partition():
    found = options({"gpu_partition": "gpu"}, GPU, site=[("gpus", "1")])
    assert found == {"gpus": "1", "partition": "gpu"}


@pytest.mark.parametrize(
    ("told", "rules", "sentence"),
    [
        ({"account": "lab"}, {}, "Girder's settings may not choose the sbatch option `account` here."),
        ({"qos": "high"}, {}, "may not choose the sbatch option `qos` here."),
        ({"mem": "a lot"}, {}, "Girder settings, worker_slurm.mem is 'a lot', which is not an amount of memory"),
        ({"mem": ["1G"]}, {}, "is neither text nor a whole number"),
        ({"partition": "a\x1bb"}, {}, "has control characters"),
        ({"time": "3:00:00"}, {"limits": {"time": "2:00:00"}}, "180 minutes, more than the 120"),
        ({"cpus": 8}, {"limits": {"cpus": "16"}, "profiles": [("*", "ntasks = 4")]}, "32 processors, more than the 16"),
        ({"gpu": 8}, {"limits": {"gpus": "4"}}, "8 GPUs are more than the 4 that one job may have here."),
    ],
)  # fmt: skip
def test_what_the_site_does_not_allow_is_passed_over_with_a_sentence(told, rules, sentence):
    without, chosen = request({}, **rules), request(told, **rules)
    (said,) = chosen.chosen(GPU).passed_over
    assert sentence in said
    assert said.endswith("It is passed over.")
    assert chosen.chosen(GPU).options == without.chosen(GPU).options


def test_the_head_of_the_site_s_script_counts_towards_the_limits():
    asked = request({"cpus": 8}, limits={"cpus": "16"})
    assert asked.chosen(ResourceWishes()).passed_over == ()
    (said,) = asked.chosen(ResourceWishes(), head=["#SBATCH --ntasks=4"]).passed_over
    assert "32 processors, more than the 16" in said


def test_the_others_count_all_the_same():
    assert options({"mem": "a lot", "time": "90"}) == {"mem": "2G", "time": "90"}


def test_the_site_may_let_them_say_who_pays_which_its_users_may_not():
    assert options({"account": "lab", "qos": "high"}, allowed=["account", "qos"]) == {
        "mem": "2G",
        "time": "60",
        "account": "lab",
        "qos": "high",
    }
    asked = request({"account": "lab"}, allowed=["account"], arguments=[("account", "other")])
    with pytest.raises(OptionRefused, match="The argument --slurm_account"):
        asked.chosen(ResourceWishes())


def test_who_asks_for_more_on_top_of_them_is_refused_for_it():
    asked = request({"cpus": 8}, limits={"cpus": "8"}, arguments=[("ntasks", "2")])
    with pytest.raises(OptionRefused, match="The argument --slurm_ntasks: the job asks for 16 processors"):
        asked.chosen(ResourceWishes())


def test_what_a_newer_plugin_tells_besides_means_nothing():
    assert options({"nodes_of_tomorrow": "7", "mem": ""}) == {"mem": "2G", "time": "60"}


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        *((setting, value, "") for setting in SETTINGS for value in (None, "", "  ")),
        ("mem", 16000, "16000"),
        ("mem", " 16G ", "16G"),
        ("time", "72:00", "72:00"),
        ("time", "2-12", "2-12"),
        ("gres_config", "gpu:a100:1,lscratch:50", "gpu:a100:1,lscratch:50"),
        ("gpu", "gpu:tesla_v100-sxm2:2", "gpu:tesla_v100-sxm2:2"),
    ],
)
def test_values_that_can_be_meant(setting, value, text):
    assert checked_setting(setting, value) == text


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mem", True), ("mem", 1.5), ("mem", {}), ("cpus", "two"), ("cpus", -1), ("ntasks", "1 2"), ("time", "soon"),
        ("account", "a\nb"), ("gpu", "0"), ("gpu", "a100:b"), ("gpu", "gpu:a:b:1"), ("gpu", "-1"), ("gpu", "a b"),
        ("gres_config", "gpu 1"), ("partition", "x" * 5000),
    ],
)  # fmt: skip
def test_values_that_cannot(setting, value):
    with pytest.raises(ValueError, match=r"^(is|has) "):
        checked_setting(setting, value)
