"""The cluster that is none: runs a job script on the worker's own host, at once, with a time limit.

For calls that somebody waits for. The script is the same as in Slurm, with the same claim and the same events; only
what Slurm would know is kept in memory, so after a restart a run is known by its events alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError, CommandStopped, CommandTimeout
from girder_worker_slurm.cluster.command_cluster import command_environment
from girder_worker_slurm.cluster.interface import JobDetail, QueueRow, SlurmJobId, Snapshot, Submission
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.errors import ClusterUnreachable, SubmitRejected

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner

logger = logging.getLogger(__name__)


@dataclass
class _Run:
    token: str
    state: str = "PENDING"
    exit_code: int = 0
    is_cancelled: bool = False


class DirectCluster:
    """Runs job scripts here. Options for sbatch mean nothing to it."""

    def __init__(
        self,
        runner: CommandRunner,
        clock: Clock,
        *,
        limit_seconds: float,
        most_remembered: int = 1000,
        most_at_once: int = 8,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._most_remembered = most_remembered
        self._most_at_once = most_at_once
        self.limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._runs: dict[SlurmJobId, _Run] = {}
        self._waiting: deque[tuple[SlurmJobId, _Run, Submission]] = deque()
        self._threads = 0

    def submit(self, submission: Submission) -> SlurmJobId:
        """See `Cluster.submit`; the script runs at once, unless as many do as this host is to bear."""
        if not submission.script.is_file():
            msg = f"The job script {submission.script} is not there."
            raise SubmitRejected(msg)
        # Nine digits, beyond what Slurm gives out by default (MaxJobId 67043328).
        job_id = SlurmJobId(str(900_000_000 + secrets.randbelow(100_000_000)))
        run = _Run(submission.token)
        with self._lock:
            self._forget_old()
            self._runs[job_id] = run
            self._waiting.append((job_id, run, submission))
            is_full = self._threads >= self._most_at_once
            self._threads += not is_full
        if not is_full:
            self._start(job_id)
        return job_id

    def _start(self, job_id: SlurmJobId) -> None:
        """A thread for what waits. Raises ClusterUnreachable if there can be none, and forgets this run unless another has begun it."""
        try:
            threading.Thread(target=self._run_waiting, name=f"gw-direct-{job_id}", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._threads -= 1
                left = [waiting for waiting in self._waiting if waiting[0] == job_id]
                for waiting in left:
                    self._waiting.remove(waiting)
                    del self._runs[job_id]
            if left:
                msg = f"No thread can be started on this host: {error}."
                raise ClusterUnreachable(msg) from error

    def find(self, token: str, unix_user: str = "") -> tuple[QueueRow, ...]:
        """See `Cluster.find`."""
        del unix_user  # whose jobs never come here
        return tuple(row for row in self.snapshot().rows if row.token == token)

    def snapshot(self) -> Snapshot:
        """See `Cluster.snapshot`."""
        rows = tuple(
            QueueRow(job_id, run.state, "None", run.token) for job_id, run in list(self._runs.items())
        )
        return Snapshot(rows, self._clock.monotonic(), 0.0)

    def describe(self, slurm_job_id: SlurmJobId) -> JobDetail | None:
        """See `Cluster.describe`."""
        run = self._runs.get(slurm_job_id)
        if run is None:
            return None
        return JobDetail(
            slurm_job_id,
            run.token,
            run.state,
            "None",
            run.exit_code,
            0,
            os.uname().nodename,
            0,
            time_limit=f"{self.limit_seconds:.0f} s",
        )

    def cancel(self, tokens: Sequence[str], *, kill: bool = False, unix_user: str = "") -> None:
        """See `Cluster.cancel`."""
        del unix_user  # whose jobs never come here
        del kill  # the runner goes on to SIGKILL by itself
        for run in list(self._runs.values()):
            if run.token in tokens:
                run.is_cancelled = True

    def _run_waiting(self) -> None:
        """In a thread: one run after the other, until none waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                job_id, run, submission = self._waiting.popleft()
            if run.is_cancelled:
                run.state = "CANCELLED"
                continue
            try:
                self._run(job_id, run, submission)
            except Exception:
                logger.exception("The direct run %s ended by a mistake of ours", job_id)
                run.state, run.exit_code = "FAILED", 127

    def _run(self, job_id: SlurmJobId, run: _Run, submission: Submission) -> None:
        run.state = "RUNNING"
        environment = {**command_environment(os.environ), "SLURM_JOB_ID": job_id, "GIRDER_SLURM_DIRECT": "1"}
        try:
            result = self._runner.stream(
                ["/bin/bash", str(submission.script)],
                timeout_seconds=self.limit_seconds,
                on_line=lambda line: _append(submission.output, line),
                env=environment,
                should_stop=lambda: run.is_cancelled,
            )
        except CommandTimeout:
            run.state = "TIMEOUT"
        except CommandStopped:
            run.state = "CANCELLED"
        except (CommandError, OSError) as error:
            _append(submission.output, str(error))
            run.state, run.exit_code = "FAILED", 127
        else:
            run.exit_code = result.returncode
            run.state = "COMPLETED" if result.returncode == 0 else "FAILED"

    def _forget_old(self) -> None:
        ended = [job_id for job_id, run in self._runs.items() if run.state in FINAL_STATES]
        for job_id in ended[: max(0, len(self._runs) - self._most_remembered)]:
            del self._runs[job_id]


def _append(path: Path, line: str) -> None:
    # The directory may be gone: the job was cancelled and its run directory removed while the script still ends.
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as handle:
        handle.write(f"{line}\n")
