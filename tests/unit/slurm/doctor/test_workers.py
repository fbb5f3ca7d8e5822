"""The workers that share a jobs root, and whether each still runs."""

from __future__ import annotations

from girder_worker_singularity.holder import Holder
from girder_worker_singularity.lease import Lease
from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.doctor.workers import judge_workers, workers_of
from tests.unit.slurm.doctor.here import levels


def test_a_worker_of_this_machine_is_seen_at_once(tmp_path):
    (tmp_path / "workers").mkdir()
    clock = FakeClock()
    lease = Lease.acquire(tmp_path / "workers" / "w1", Holder.this_process("w1"), clock)

    (seen,) = workers_of(tmp_path, clock)

    assert (seen.worker_id, seen.is_running) == ("w1", True)
    assert clock.slept == []
    lease.release()
    assert workers_of(tmp_path, clock) == []


class RefreshingClock(FakeClock):
    """While somebody waits, another worker counts up."""

    def __init__(self, *leases: Lease) -> None:
        super().__init__()
        self._leases = leases

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        for lease in self._leases:
            lease.refresh()


def test_a_worker_elsewhere_runs_if_its_lease_moves(tmp_path):
    (tmp_path / "workers").mkdir()
    leases = [
        Lease.acquire(tmp_path / "workers" / name, Holder("elsewhere", "boot", "ns", 7, 8, name), FakeClock())
        for name in ("w1", "w2")
    ]

    seen = workers_of(tmp_path, RefreshingClock(leases[0]))

    assert [(worker.worker_id, worker.is_running) for worker in seen] == [("w1", True), ("w2", False)]
    assert levels(judge_workers(seen)) == ["ok", "warn"]
    assert levels(judge_workers([])) == ["ok"]
