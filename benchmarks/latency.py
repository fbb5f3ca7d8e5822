"""How soon Girder knows of an end, and how soon Slurm has a task, one job at a time or a few."""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

from benchmarks.site import Bench, last_act, percentile, uptime
from tests.support.girder_site import FINAL, NotReached

if TYPE_CHECKING:
    from tests.support.worker import Worker

_PEER_SECONDS = 10.0
_BETWEEN_JOBS_SECONDS = 1.5


def latency(bench: Bench, worker: Worker, cli: str, count: int) -> dict[str, Any]:
    """Of jobs that come one after the other, on a worker that runs: completion and start, against a look every 10 s."""
    seen: dict[str, float] = {}
    jobs: list[str] = []
    peer = _Poller(bench)
    peer.start()
    until = time.monotonic() + count * _BETWEEN_JOBS_SECONDS + 120
    next_start = time.monotonic()
    while len(seen) < count:
        if time.monotonic() > until:
            msg = f"{len(seen)} of {count} jobs have ended"
            raise NotReached(msg)
        if len(jobs) < count and time.monotonic() >= next_start:
            jobs.append(bench.run_cli(cli))
            next_start = time.monotonic() + _BETWEEN_JOBS_SECONDS
        now = uptime()
        for job, status in bench.statuses([job for job in jobs if job not in seen]).items():
            if status in FINAL:
                seen[job] = now
        time.sleep(0.02)
    peer.finish()
    acts = {job: last_act(log)[0] for job, log in bench.logs(jobs).items()}
    waits = [seen[job] - acts[job] for job in jobs]
    entries = {job: worker.entries_of(job) for job in jobs}
    starts = [_submitted(each)["at"] - each[0]["at"] for each in entries.values()]
    ids = {job: _submitted(each)["slurm_job_id"] for job, each in entries.items()}
    looked = [peer.gone[ids[job]] - acts[job] for job in jobs if ids[job] in peer.gone]
    result: dict[str, Any] = {
        "completion_seconds_median": round(statistics.median(waits), 3),
        "completion_seconds_p95": round(percentile(waits, 0.95), 3),
        "completion_seconds_p99": round(percentile(waits, 0.99), 3),
        "idle_start_seconds_median": round(statistics.median(starts), 3),
        "idle_start_seconds_p99": round(percentile(starts, 0.99), 3),
    }
    if looked:
        result["poll_10s_completion_seconds_median"] = round(statistics.median(looked), 3)
        result["completion_ratio_vs_poll_10s"] = round(
            statistics.median(waits) / max(statistics.median(looked), 0.001), 3
        )
    return result


def _submitted(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return next(entry for entry in entries if entry["event"] == "submitted")


class _Poller(threading.Thread):
    """Looks at the queue every ten seconds, as simpler submitters do."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(daemon=True)
        self._bench = bench
        self._ends = threading.Event()
        self._known: set[str] = set()
        #: Slurm job id → when a look first did not show it any more, by `uptime`.
        self.gone: dict[str, float] = {}

    def run(self) -> None:
        while not self._ends.wait(_PEER_SECONDS):
            self._look()

    def _look(self) -> None:
        rows = dict(
            line.split()
            for line in self._bench.slurm("squeue", "-h", "-t", "all", "-o", "%i %T").splitlines()
        )
        now = uptime()
        for job, state in rows.items():
            if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
                self.gone.setdefault(job, now)

    def finish(self) -> None:
        """One more look, so that the last jobs count as well."""
        self._ends.set()
        self.join(60)
        time.sleep(_PEER_SECONDS / 2)
        self._look()
