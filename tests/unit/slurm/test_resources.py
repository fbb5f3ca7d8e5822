"""Wishes of a container and the site's options: those of one job."""

from __future__ import annotations

import pytest

from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.girder.gpu_argument import gpus_asked_for
from girder_worker_slurm.script.resources import job_options


def asked(site=(), head=(), gpu_options=None, **wishes):
    return dict(
        job_options(tuple(site), ResourceWishes(**wishes), head=head, gpu_options=gpu_options).options
    )


def test_without_wishes_the_options_are_the_site_s():
    site = (("p", "low"), ("mem", "4G"), ("exclusive", ""))
    assert job_options(site, ResourceWishes(), gpu_options={"gres": "gpu:1"}).options == site


@pytest.mark.parametrize(
    ("site", "wish", "mem"),
    [
        ((), 2048, "2048M"),
        ((("mem", "1G"),), 2048, "2048M"),
        ((("mem", "1000"),), 1001, "1001M"),
        ((("mem", "4G"),), 2048, "4G"),
        ((("mem", "2G"),), 2048, "2G"),
        ((("mem", "2048MB"),), 4096, "4096M"),
        ((("mem", "1T"),), 4096, "1T"),
        ((("mem", "900000K"),), 100, "900000K"),
        ((("mem", "0"),), 2048, "0"),
        ((("mem", "what"),), 2048, "what"),
    ],
)
def test_memory_is_raised_and_never_lowered(site, wish, mem):
    assert asked(site, memory_mib=wish) == {"mem": mem}


@pytest.mark.parametrize("name", ["mem-per-cpu", "mem-per-gpu"])
def test_memory_that_the_site_counts_otherwise_is_left_to_it_and_named(name):
    found = job_options(((name, "1G"),), ResourceWishes(memory_mib=4096))
    assert found.options == ((name, "1G"),)
    assert found.unmet == ("4096 MiB of memory",)


@pytest.mark.parametrize(
    ("site", "wish", "expected"),
    [
        ((), 4, {"cpus-per-task": "4"}),
        ((), 1, {}),
        ((("c", "2"),), 4, {"cpus-per-task": "4"}),
        ((("c", "8"),), 4, {"c": "8"}),
        ((("cpus-per-task", "8"),), 9, {"cpus-per-task": "9"}),
        ((("ntasks", "2"),), 3, {"ntasks": "2", "cpus-per-task": "2"}),
        ((("n", "4"),), 4, {"n": "4"}),
        ((("exclusive", ""),), 64, {"exclusive": ""}),
    ],
)
def test_processors_are_raised_and_never_lowered(site, wish, expected):
    assert asked(site, cpus=wish) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (("#SBATCH --mem=16G",), {}),
        (("#SBATCH --mem 16G --time=1 # much",), {}),
        (("#SBATCH --mem=1G",), {"mem": "2048M"}),
        (("#SBATCH --time=1 # --mem=16G",), {"mem": "2048M"}),
    ],
)
def test_the_head_of_the_site_s_script_counts_as_the_site_s_options(head, expected):
    assert asked(head=head, memory_mib=2048) == expected


@pytest.mark.parametrize(
    "head", ["#SBATCH -c8", "#SBATCH -c 8", "#SBATCH -p low -n 8", "#SBATCH --exclusive --mem=1"]
)
def test_short_options_and_flags_of_the_head_are_understood(head):
    assert asked(head=(head,), cpus=8) == {}


def test_an_option_of_the_worker_wins_over_the_head():
    assert asked((("mem", "1G"),), head=("#SBATCH --mem=16G",), memory_mib=2048) == {"mem": "2048M"}


def test_jobs_with_gpus_have_the_site_s_options_for_them():
    options = {"gres": "gpu:a100:{gpus}", "p": "gpu", "account": "lab"}
    site = (("partition", "cpu"), ("time", "60"))
    assert asked(site, gpu_options=options, gpus=2) == {
        "time": "60", "gres": "gpu:a100:2", "partition": "gpu", "account": "lab",
    }  # fmt: skip


DESCRIPTION = "<executable><parameters><integer><name>gpu</name><longflag>gpu</longflag></integer></parameters></executable>"


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        (["--gpu", "2", "x"], 2), (["--gpu=3"], 3), (["--gpu", "0"], 0), (["--gpu", "-1"], 0), (["--gpu", "all"], 0),
        (["--gpu"], 0), (["x", "--gpus", "2"], 0), ([], 0), (["--gpu", "99999"], 0), (["--gpu", "²"], 0),
        (["--gpu", "1", "--gpu", "2"], 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("description", [DESCRIPTION, DESCRIPTION.replace(">gpu</l", ">--gpu</l"), ""])
def test_the_argument_gpu_asks_for_so_many(arguments, gpus, description):
    assert gpus_asked_for(arguments, description) == gpus


@pytest.mark.parametrize("description", ["<executable/>", "<gpu", DESCRIPTION.replace("longflag", "other")])
def test_an_argument_that_the_cli_does_not_declare_asks_for_nothing(description):
    assert gpus_asked_for(["--gpu", "2"], description) == 0
