"""What a task asks for, from its message to sbatch's options and the job's script."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from girder_worker_slurm.errors import NotSupported
from girder_worker_slurm.job.preparation import Preparation, site_file
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.script.render import JobScript
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


def test_a_task_without_wishes_has_the_site_s_options_as_they_were_when_its_script_was_made(site):
    site.task()
    site.run_until(site.is_in(Phase.RENDERED))
    before = site.submit_options
    site.submit_options = (("mem", "9G"),)
    site.restart()
    assert submitted(site).options == before
    assert site.state().options == before


def test_a_task_s_limits_become_options_of_its_job_and_outlast_a_restart(site):
    site.task(mem_limit="2g", nano_cpus=2_000_000_000)
    site.run_until(site.is_in(Phase.RENDERED))
    site.restart()
    expected = (("mem", "2048M"), ("time", "60"), ("cpus-per-task", "2"))
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


def test_arguments_for_slurm_become_options_and_never_reach_the_program(site):
    site.task(arguments=("CLI", "--slurm_mem", "3G", "in", "--slurm_exclusive", "out"), slurm={"time": 30})
    assert submitted(site).options == (("mem", "3G"), ("time", "30"), ("exclusive", ""))
    assert written(site, "arguments") == "CLI\0in\0out\0"
    options = json.loads((site.job().record.path / "options.json").read_text())
    assert [(option["name"], option["origin"]) for option in options] == [
        ("mem", "The argument --slurm_mem"),
        ("time", "docker-params of the CLI, slurm.time"),
        ("exclusive", "The argument --slurm_exclusive"),
    ]


def test_options_that_were_asked_for_outlast_a_restart(site):
    site.task(arguments=("CLI", "--slurm_mem=3G"))
    site.run_until(site.is_in(Phase.STAGED))
    site.restart()
    assert submitted(site).options == (("mem", "3G"), ("time", "60"))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            {"arguments": ("CLI", "--slurm_account=x")},
            "--slurm_account: the sbatch option `account` may not be chosen",
        ),
        ({"arguments": ("CLI", "--slurm_mem", "lots")}, "'lots' of `mem` is not an amount of memory"),
        ({"arguments": ("CLI", "--slurm_mem")}, "--slurm_mem has no value"),
        ({"slurm": {"output": "/etc/x"}}, "`output` is set by the worker itself"),
        ({"slurm": ["mem"]}, "is not a set of options"),
    ],
)
def test_a_task_that_asks_for_what_it_may_not_ends_at_once_with_the_reason(site, task, words):
    site.task(**task)
    site.run_until(site.is_in(Phase.REPORTED))
    assert not site.cluster.jobs
    verdict = site.state().verdict
    assert verdict.code == "option_refused"
    assert words in verdict.sentence


@pytest.mark.parametrize("line", ["hetjob", "--array=1-10"])
def test_a_sites_template_may_not_make_several_jobs_of_one_either(tmp_path, line):
    """Only the head of a submit script was looked at."""
    template = tmp_path / "site.slurm"
    template.write_text(
        '{% extends "singularity.slurm" %}\n{% block head %}\n#SBATCH ' + line + "\n{% endblock %}\n"
    )
    preparation = Preparation(None, SimpleNamespace(script_template=template), None)
    script = JobScript("gw-1", "/run", "/spool", "/log", "/scratch", ("true",))
    with pytest.raises(NotSupported, match=line.split("=")[0]):
        preparation._rendered(script)


def test_a_submit_script_that_cannot_be_read_for_a_moment_ends_no_job(tmp_path, monkeypatch):
    """A worker without a file left to open refused its jobs, as if the script were missing."""

    def stumbling(_path):
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(NotSupported, match=r"The site's submit script .* cannot be read: No such file"):
        site_file(tmp_path / "submit.sh", "submit script")
    monkeypatch.setattr(Path, "read_bytes", stumbling)
    with pytest.raises(OSError, match="Too many open files"):
        site_file(tmp_path / "submit.sh", "submit script")
