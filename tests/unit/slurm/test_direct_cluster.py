"""Short runs on the worker's own host: few at once."""

from __future__ import annotations

import threading
import time

from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.direct_cluster import DirectCluster
from girder_worker_slurm.cluster.interface import Submission
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
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
