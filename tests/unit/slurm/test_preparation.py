"""What a task asks for, from its message to sbatch's options and the job's script."""

from __future__ import annotations

import pytest

from girder_worker_slurm.job.state import Phase
from tests.unit.slurm.site import Site


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    site.submit_options = (("mem", "1G"), ("time", "60"))
    site.restart()
    return site


def submitted(site):
    site.run_until(site.is_in(Phase.SUBMITTED))
    (job,) = site.cluster.jobs.values()
    return job.submission


def written(site, name):
    return (site.runs.path(site.state().token) / name).read_text()


def test_a_task_without_wishes_has_the_site_s_options_and_none_in_its_record(site):
    site.task()
    assert submitted(site).options == site.submit_options
    assert site.state().options is None


def test_a_task_s_limits_become_options_of_its_job_and_outlast_a_restart(site):
    site.task(mem_limit="2g", nano_cpus=2_000_000_000)
    site.run_until(site.is_in(Phase.RENDERED))
    site.restart()
    expected = (("time", "60"), ("mem", "2048M"), ("cpus-per-task", "2"))
    assert submitted(site).options == expected
    assert site.state().options == expected


def test_a_task_that_wants_gpus_gets_the_option_and_the_variables(site):
    site.task(device_requests=[{"count": 2, "capabilities": [["gpu"]]}])
    assert ("gres", "gpu:2") in submitted(site).options
    script = written(site, "job.slurm")
    assert " --nv " in script
    assert "gpu_variables=( CUDA_VISIBLE_DEVICES " in script


def test_the_argument_gpu_is_a_wish(site):
    site.task(arguments=("Cli", "--gpu", "1"))
    assert ("gres", "gpu:1") in submitted(site).options


def test_what_is_not_met_is_named_once_in_the_log(site):
    site.task(privileged=True, user="root", cap_add=["SYS_ADMIN"])
    site.run_to_the_end()
    assert site.shown().text.count("no counterpart on a cluster: cap_add, privileged, user.") == 1


def test_a_site_that_counts_memory_otherwise_is_said_to_decide(site):
    site.submit_options = (("mem-per-cpu", "1G"),)
    site.restart()
    site.task(mem_limit="8g")
    site.run_to_the_end()
    assert "The site's own sbatch options decide about 8192 MiB of memory." in site.shown().text


def test_a_value_that_makes_no_sense_ends_the_job_with_its_name(site):
    site.task(mem_limit="a lot")
    site.run_to_the_end()
    assert "`mem_limit`" in site.shown().text
    assert not site.calls("submit")
