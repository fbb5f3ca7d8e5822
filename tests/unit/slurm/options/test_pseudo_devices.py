"""JARVICE's pseudo-devices, and the overlay that a job may ask for."""

from __future__ import annotations

import pytest

from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.job.job_request import job_request
from girder_worker_slurm.options.catalogue import USUALLY_ALLOWED
from girder_worker_slurm.options.pseudo_devices import split_devices
from girder_worker_slurm.options.requests import OptionRules, parse_allowed
from girder_worker_slurm.options.shapes import plain_options


def test_what_is_no_path_is_about_the_job():
    devices = ["/dev/fuse", "partition = gpu", "exclusive=True", "overlay=700", "sbatch_mem-per-cpu=2G", "/a=b", {"x": 1}]  # fmt: skip
    kept, said = split_devices(devices)
    assert kept == ["/dev/fuse", "/a=b", {"x": 1}]
    assert said == {"partition": "gpu", "exclusive": True, "overlay": "700", "mem-per-cpu": "2G"}
    assert split_devices(["exclusive=False"]) == ([], {"exclusive": False})


@pytest.mark.parametrize("device", ["colour=red", "sbatch_=x", "=", "qos=x"])
def test_a_device_that_is_neither_ends_the_job(device):
    with pytest.raises(OptionRefused, match="neither a path nor one of partition=NAME"):
        split_devices([device])


def request(size, *, allowed=(*USUALLY_ALLOWED, "overlay"), site=()):
    return job_request(
        OptionRules(site=tuple(site), allowed=parse_allowed(allowed)),
        image="a", cli="", labels={}, parameters={"overlay": size} if size is not None else {}, arguments=(),
    )  # fmt: skip


@pytest.mark.parametrize("size", [64, 0, 700])
def test_an_overlay_is_asked_for_and_sbatch_never_hears_of_it(size):
    asked = request(size)
    assert asked.overlay_mib == size
    assert asked.chosen(ResourceWishes()).options == ()


def test_a_site_may_give_all_jobs_one():
    assert request(None, site=(("overlay", "100"), ("mem", "1G"))).overlay_mib == 100
    assert request(None).overlay_mib is None
    assert plain_options((("overlay", "100"), ("mem", "1G"))) == (("mem", "1G"),)


def test_an_overlay_that_is_too_small_or_not_allowed_is_refused():
    with pytest.raises(OptionRefused, match="64 MiB at least"):
        _ = request(10).overlay_mib
    with pytest.raises(OptionRefused, match="`overlay` may not be chosen here"):
        _ = request(700, allowed=USUALLY_ALLOWED).overlay_mib
