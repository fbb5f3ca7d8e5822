"""What a running job has used by now, as a real Slurm measures it."""

from __future__ import annotations

import subprocess

import pytest

from girder_worker_slurm.cluster.interface import SlurmJobId
from tests.contract.test_cluster import WAITS, real_lab

pytestmark = pytest.mark.slurm

#: Holds some megabytes and a processor.
BUSY = "held=$(head -c 20000000 /dev/zero | tr '\\0' x); while :; do :; done"


@pytest.fixture
def lab(tmp_path):
    yield from real_lab(tmp_path)


def test_a_running_job_tells_its_memory_and_processor_time_where_slurm_measures_them(lab):
    token = lab.prepare(("/bin/bash", "-c", BUSY), is_endless=True)
    job_id = lab.submit(token)
    lab.event(token, "started")
    config = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=True).stdout
    (gather,) = (line.split("=")[1].strip() for line in config.splitlines() if "JobAcctGatherType" in line)
    if gather in ("(null)", "", "jobacct_gather/none"):
        assert lab.cluster.usage_so_far(job_id, token) is None
        return

    def measured():
        usage = lab.cluster.usage_so_far(job_id, token)
        return usage if usage is not None and usage.cpu_seconds and usage.memory_peak_mib else None

    usage = lab.wait_for(measured, "a measurement")
    assert usage.memory_peak_mib > 15


def test_what_does_not_run_has_used_nothing(lab):
    token = lab.endless()
    waiting = lab.submit(token, *WAITS)
    assert lab.cluster.usage_so_far(waiting, token) is None
    assert lab.cluster.usage_so_far(waiting, "another name") is None
    assert lab.cluster.usage_so_far(SlurmJobId("99999999"), token) is None
