"""The same with the worker's jobs root over a network mount that is up to half a minute late, and nodes that have it on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.latency import latency
from benchmarks.standing import copy_of, model_of, seconds_to_take_up
from tests.support.girder_site import wait_until
from tests.support.network_mount import WorkersMount
from tests.support.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.site import Bench

_LATENCIES = ("completion_seconds_median", "completion_seconds_p95", "idle_start_seconds_median")


def network(bench: Bench, sif: Path, cli: str, *, jobs: int, standing: int) -> dict[str, Any]:
    """How soon jobs end and start there, and how soon a killed worker has so many back."""
    with WorkersMount(bench.stack, bench.root / "far") as mount:
        worker = Worker(bench.stack, mount.directory, sif, prefix=mount.enter, poll_seconds=15.0)
        bench.workers.append(worker)
        worker.start()
        try:
            times = latency(bench, worker, cli, jobs)
            figures = {f"{name}_on_network": times[name] for name in _LATENCIES}
            with bench.closed_partition():
                job = bench.run_cli(cli)
                wait_until("it is in Slurm", lambda: worker.slurm_job_id(job), seconds=60)
                worker.kill()
                record = next(worker.root.glob("record/[!.]*"))
                # As they would be in Slurm: it is not asked for any before all are back.
                copy_of(bench, model_of(record), standing - 1, in_slurm=False, submitted=True)
                figures[f"recovery_seconds_at_{standing}_on_network"] = round(seconds_to_take_up(worker), 2)
                worker.kill()
        finally:
            worker.kill()
            bench.cancel_all()
    return figures
