"""A program that runs as a Slurm job, on a mount that shows late what the node writes; else see the contract's tests."""

from __future__ import annotations

import os
from types import SimpleNamespace

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cluster.interface import SlurmJobId
from girder_worker_slurm.job.slurm_runner import SlurmCommandRunner


def test_a_result_that_the_mount_does_not_show_is_looked_for_when_slurm_says_that_the_job_has_ended(
    tmp_path, monkeypatch
):
    """NFS remembers for up to a minute that a file was not there, and the job ended "without a result"."""
    asked = []

    def node_is_seen(path, *_arguments, **_how):
        asked.append(path)
        (path / "output").write_text("made\n")
        (path / "exit").write_text("0\n")

    monkeypatch.setattr(os, "utime", node_is_seen)
    row = SimpleNamespace(slurm_job_id=SlurmJobId("7"), state="COMPLETED", reason="None")
    cluster = SimpleNamespace(submit=lambda _submission: SlurmJobId("7"), find=lambda _token: (row,))
    runner = SlurmCommandRunner(cluster, FakeClock(), tmp_path / "commands", token_prefix="gw-test-")

    result = runner.run(["true"], timeout_seconds=600)

    assert (result.returncode, result.stdout) == (0, "made\n")
    assert asked
