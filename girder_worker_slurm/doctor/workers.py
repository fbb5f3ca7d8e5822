"""Which workers run on a jobs root, by their leases. For the doctor, and for `girder-slurm cancel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.holder import Holder
from girder_worker_singularity.lease import LeaseWatch, Standing
from girder_worker_slurm.doctor.finding import ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.doctor.finding import Finding

CHECK = "worker"

#: A running worker counts up every five seconds.
_LOOK_AGAIN_SECONDS = 7.0


@dataclass(frozen=True)
class WorkerSeen:
    """A worker that has, or had, a lease on the jobs root."""

    worker_id: str
    where: str
    is_running: bool


def workers_of(root: Path, clock: Clock) -> list[WorkerSeen]:
    """The workers of a jobs root. Takes seven seconds if one of them may run on another machine."""
    try:
        names = sorted(path.name for path in (root / "workers").iterdir())
    except FileNotFoundError:
        return []
    watches = [LeaseWatch(root / "workers" / name, clock) for name in names if not name.startswith(".")]
    first = [
        (watch, watch.look(), watch.path.read_bytes() if watch.path.exists() else b"") for watch in watches
    ]
    held = [(watch, content) for watch, standing, content in first if standing is Standing.HELD]
    # Of a process of this machine the first look tells all; another's lease has to be seen moving.
    afar = [(watch, content) for watch, content in held if not _is_here(watch.holder)]
    if afar:
        clock.sleep(_LOOK_AGAIN_SECONDS)
    standing_still = {
        watch.path.name
        for watch, content in afar
        if not watch.path.exists() or watch.path.read_bytes() == content
    }
    running = {watch.path.name for watch, _ in held} - standing_still
    return [
        WorkerSeen(
            worker_id=watch.holder.name or watch.path.name if watch.holder else watch.path.name,
            where=f"process {watch.holder.pid} on {watch.holder.host}"
            if watch.holder
            else "an unknown place",
            is_running=watch.path.name in running,
        )
        for watch, standing, _ in first
        if standing is not Standing.FREE
    ]


def _is_here(holder: Holder | None) -> bool:
    """Whether the holder is a process that this one could see end."""
    if holder is None:
        return False
    here = Holder.this_process()
    return bool(here.boot_id) and (holder.host, holder.boot_id, holder.pid_namespace) == (
        here.host,
        here.boot_id,
        here.pid_namespace,
    )


def judge_workers(workers: Sequence[WorkerSeen]) -> Iterator[Finding]:
    """Who serves this jobs root; none is no fault."""
    running = [worker for worker in workers if worker.is_running]
    if running:
        names = ", ".join(f"{worker.worker_id} ({worker.where})" for worker in running)
        yield ok(CHECK, f"Running: {names}.")
    for worker in workers:
        if not worker.is_running:
            yield warn(
                CHECK,
                f"The worker {worker.worker_id} ({worker.where}) left its lease behind and shows no sign of life.",
                "Start it again, or leave its jobs to another worker of this root, which takes them after a minute.",
            )
    if not workers:
        yield ok(CHECK, "None runs on this jobs root.")
