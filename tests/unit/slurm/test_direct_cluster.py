"""Short runs on the worker's own host: few at once."""

from __future__ import annotations

import threading
import time

import pytest

from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.direct_cluster import DirectCluster
from girder_worker_slurm.cluster.interface import Submission
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.errors import ClusterUnreachable
from tests.unit.slurm.waiting import wait_until


def test_few_direct_runs_are_under_way_at_once_and_all_have_their_turn(tmp_path):
    """Each had a thread and a container on the worker's host, however many a form, or somebody with a script, asked for."""
    under_way, most, lock = 0, 0, threading.Lock()

    class Counting(FakeCommandRunner):
        def stream(self, argv, **how):
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.01)
            with lock:
                under_way -= 1
            return super().stream(argv, **how)

    script = tmp_path / "job.slurm"
    script.touch()
    cluster = DirectCluster(
        Counting({"/bin/bash": FakeAnswer()}), FakeClock(), limit_seconds=5.0, most_at_once=3
    )
    before = threading.active_count()
    ids = [cluster.submit(Submission(f"gw-{n}", script, tmp_path / "out")) for n in range(30)]
    assert threading.active_count() - before <= 3
    cluster.cancel(["gw-29"])
    wait_until(lambda: {cluster.describe(job).state for job in ids} <= FINAL_STATES, cluster.snapshot)
    assert most <= 3
    assert cluster.describe(ids[-1]).state == "CANCELLED"
    assert {cluster.describe(job).state for job in ids[:-1]} == {"COMPLETED"}


def test_a_host_that_has_no_thread_left_for_a_while_does_not_stop_direct_runs_for_good(tmp_path, monkeypatch):
    """The run waited for a thread that never came, and after eight of them so did all others."""
    script = tmp_path / "job.slurm"
    script.touch()
    runner = FakeCommandRunner({"/bin/bash": FakeAnswer()})
    cluster = DirectCluster(runner, FakeClock(), limit_seconds=5.0, most_at_once=2)

    def refuses(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuses)
        for number in range(3):
            with pytest.raises(ClusterUnreachable, match="can't start new thread"):
                cluster.submit(Submission(f"gw-{number}", script, tmp_path / "out"))
    assert cluster.snapshot().rows == ()
    job = cluster.submit(Submission("gw-9", script, tmp_path / "out"))
    wait_until(lambda: cluster.describe(job).state == "COMPLETED", cluster.snapshot)
