"""A pretended cluster, for tests here and of whoever builds on this package.

`tests/contract/test_cluster.py` runs it and a real Slurm through the same cases.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.cluster.interface import JobDetail, QueueRow, SlurmJobId, Snapshot, Submission
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES, sbatch_arguments
from girder_worker_slurm.errors import ClusterUnreachable, SubmitRejected, SubmitUnsure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock

__all__ = ["FakeCluster", "FakeProgram", "FakeSlurmJob"]


@dataclass(frozen=True)
class FakeProgram:
    """What the container of a job is pretended to do."""

    exit_code: int = 0
    output: bytes = b""
    #: Runs until it is cancelled.
    is_endless: bool = False
    #: Called in the run directory's place when the program starts, to write outputs.
    act: Callable[[Path], None] | None = None


@dataclass
class FakeSlurmJob:
    """One job of a `FakeCluster`."""

    slurm_job_id: SlurmJobId
    submission: Submission
    state: str = "PENDING"
    reason: str = "None"
    exit_code: int = 0
    signal: int = 0
    restarts: int = 0
    #: Whether this copy has won the claim, so that its container has run.
    has_run: bool = False
    is_held: bool = False
    #: Whether it was given a node, as a job that ended before it started may or may not have been.
    had_node: bool = False
    #: Read when its script begins, as the script does; the worker removes the file of an attempt that is over.
    nonce: str = ""

    @property
    def token(self) -> str:
        """The job's name."""
        return self.submission.token

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.submission.script.parent

    @property
    def is_final(self) -> bool:
        """Whether Slurm has ended it."""
        return self.state in FINAL_STATES


@dataclass(frozen=True)
class _SubmitMishap:
    error: Exception
    is_taken: bool


@dataclass
class FakeCluster:
    """A cluster whose jobs advance only when `step` is called (or `start`, `finish`, `end` for one job).

    It keeps the job script's protocol with the worker: claim, `started`, output, `ended` or `refused`, in the run
    directory of the submission and in the spool beside it.
    """

    clock: Clock
    partitions: tuple[str, ...] = ("normal",)
    node: str = "fake1"
    #: What containers do, by token; all others do `default_program`.
    programs: dict[str, FakeProgram] = field(default_factory=dict)
    default_program: FakeProgram = FakeProgram()
    #: While set, nothing but the submission of jobs is answered.
    is_unreachable: bool = False
    #: Orders to cancel that get lost on their way.
    lost_cancels: int = 0
    #: Whether containers end when Slurm asks them to; only KILL ends the others.
    obeys_term: bool = True
    jobs: dict[str, FakeSlurmJob] = field(default_factory=dict)
    #: Every question and order, in their sequence: (method, what).
    calls: list[tuple[str, Any]] = field(default_factory=list)
    _mishaps: deque[_SubmitMishap] = field(default_factory=deque)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _next_id: int = 100

    # -- the interface

    def submit(self, submission: Submission) -> SlurmJobId:
        """See `Cluster.submit`."""
        with self._lock:
            self.calls.append(("submit", submission.token))
            try:
                sbatch_arguments(submission)
            except ValueError as error:
                raise SubmitRejected(str(error)) from error
            partition = dict(submission.options).get("partition", self.partitions[0])
            if partition not in self.partitions:
                msg = f"Slurm refused the job: sbatch: error: invalid partition specified: {partition}"
                raise SubmitRejected(msg)
            mishap = self._mishaps.popleft() if self._mishaps else None
            if mishap is not None and not mishap.is_taken:
                raise mishap.error
            self._next_id += 1
            job = FakeSlurmJob(SlurmJobId(str(self._next_id)), submission)
            begin = dict(submission.options).get("begin")
            if begin is not None:
                job.is_held, job.reason = True, "BeginTime"
            self.jobs[job.slurm_job_id] = job
            if mishap is not None:
                raise mishap.error
            return job.slurm_job_id

    def find(self, token: str, unix_user: str = "") -> tuple[QueueRow, ...]:
        """See `Cluster.find`."""
        with self._lock:
            self._answer("find", token)
            rows = (_row(job) for job in self.jobs.values() if job.token == token)
            return tuple(row for row in rows if row.unix_user == unix_user)

    def snapshot(self) -> Snapshot:
        """See `Cluster.snapshot`."""
        with self._lock:
            self._answer("snapshot", None)
            return Snapshot(tuple(_row(job) for job in self.jobs.values()), self.clock.monotonic(), 0.01)

    def describe(self, slurm_job_id: SlurmJobId) -> JobDetail | None:
        """See `Cluster.describe`."""
        with self._lock:
            self._answer("describe", slurm_job_id)
            job = self.jobs.get(slurm_job_id)
            if job is None:
                return None
            return JobDetail(
                slurm_job_id=job.slurm_job_id,
                token=job.token,
                state=job.state,
                reason=job.reason,
                exit_code=job.exit_code,
                signal=job.signal,
                nodes=self.node if job.had_node else "",
                restarts=job.restarts,
                run_time="00:00:01",
                time_limit="01:00:00",
            )

    def cancel(self, tokens: Sequence[str], *, kill: bool = False, unix_user: str = "") -> None:
        """See `Cluster.cancel`."""
        with self._lock:
            self._answer("kill" if kill else "cancel", tuple(tokens))
            if self.lost_cancels > 0:
                self.lost_cancels -= 1
                return
            for job in self.jobs.values():
                if job.submission.unix_user == unix_user and job.token in tokens:
                    self._cancel(job, kill=kill)

    # -- what a test does to it

    def lose_answer_of_next_submit(self, *, is_taken: bool) -> None:
        """The next submission ends in SubmitUnsure; the job exists all the same, or does not."""
        self._mishaps.append(_SubmitMishap(SubmitUnsure("sbatch did not answer"), is_taken))

    def refuse_next_submit(self, error: Exception) -> None:
        """The next submission raises this, and there is no job."""
        self._mishaps.append(_SubmitMishap(error, is_taken=False))

    def step(self) -> None:
        """Starts every pending job that is not held; ends every running job whose program ends."""
        for job in list(self.jobs.values()):
            if job.state == "RUNNING" and job.has_run and not self._program(job).is_endless:
                self.finish(job.slurm_job_id)
            elif job.state == "PENDING" and not job.is_held:
                self.start(job.slurm_job_id)

    def start(self, slurm_job_id: str) -> bool:
        """Starts a pending job; False when the script ended without running its container."""
        with self._lock:
            job = self.jobs[slurm_job_id]
            job.state, job.reason, job.had_node = "RUNNING", "None", True
            if not (job.run / "nonce").exists():
                job.state, job.exit_code = "FAILED", 66
                return False
            job.nonce = (job.run / "nonce").read_text(encoding="utf-8")
            if not self._claim(job):
                self._event(job, "refused", why="claimed")
                job.state = "COMPLETED"
                return False
            job.has_run = True
            self._event(job, "started")
            program = self._program(job)
            if program.act is not None:
                program.act(job.run)
            return True

    def finish(self, slurm_job_id: str, *, is_heard: bool = True, cause: str = "exit", **fields: Any) -> None:
        """Ends a running job as its program does; without `is_heard` its last word is lost."""
        with self._lock:
            job = self.jobs[slurm_job_id]
            program = self._program(job)
            with (job.run / "output.log").open("ab") as log:
                log.write(program.output)
                size = log.tell()
            code = int(fields.pop("exit_code", program.exit_code))
            if is_heard:
                signal = code - 128 if code > 128 else 0
                words = {"exit_code": code, "signal": signal, "cause": cause, "log_bytes": size, "seconds": 1}
                self._event(job, "ended", **{**words, **fields})
            job.exit_code = code
            job.state = "COMPLETED" if code == 0 else "FAILED"

    def end(self, slurm_job_id: str, state: str, *, reason: str = "None", signal: int = 0) -> None:
        """Slurm's own end of a job (or any other state of it), without a word of the script."""
        with self._lock:
            job = self.jobs[slurm_job_id]
            job.state, job.reason, job.signal = state, reason, signal
            job.had_node = job.had_node or state != "PENDING"

    def crash(self, slurm_job_id: str) -> None:
        """The controller loses its latest job, and gives the id out again."""
        with self._lock:
            del self.jobs[slurm_job_id]
            self._next_id = int(slurm_job_id) - 1

    def forget(self, slurm_job_id: str) -> None:
        """Slurm does not remember the job any more."""
        with self._lock:
            del self.jobs[slurm_job_id]

    def runs_of(self, token: str) -> int:
        """How many copies have run their container, of jobs that are remembered."""
        return sum(1 for job in self.jobs.values() if job.token == token and job.has_run)

    # -- inside

    def _answer(self, method: str, what: Any) -> None:
        self.calls.append((method, what))
        if self.is_unreachable:
            msg = "squeue failed: slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
            raise ClusterUnreachable(msg)

    def _program(self, job: FakeSlurmJob) -> FakeProgram:
        return self.programs.get(job.token, self.default_program)

    def _claim(self, job: FakeSlurmJob) -> bool:
        mine = job.run / f"claim.{job.slurm_job_id}.{job.restarts}.{self.node}.1"
        words = {"by": "job", "slurm_job_id": job.slurm_job_id, "restart": job.restarts, "node": self.node}
        mine.write_text(json.dumps(words) + "\n", encoding="utf-8")
        try:
            os.link(mine, job.run / "claim")
        except FileExistsError:
            return False
        return True

    def _event(self, job: FakeSlurmJob, kind: str, **fields: Any) -> None:
        spool = job.run.parent.parent / "spool"
        name = f"{job.token}.{kind}.{job.slurm_job_id}.{job.restarts}.json"
        words = {
            "token": job.token,
            "nonce": job.nonce or (job.run / "nonce").read_text(encoding="utf-8"),
            "kind": kind,
            "slurm_job_id": job.slurm_job_id,
            "restart": job.restarts,
            "node": self.node,
            "at": int(self.clock.now()),
            **fields,
        }
        draft = spool / f".{name}"
        draft.write_text(json.dumps(words) + "\n", encoding="utf-8")
        draft.rename(spool / name)

    def _cancel(self, job: FakeSlurmJob, *, kill: bool) -> None:
        if job.is_final:
            return
        if job.state == "PENDING":
            job.state = "CANCELLED"
        elif kill:
            job.state, job.signal = "CANCELLED", 9
        elif self.obeys_term:
            if job.has_run:
                self.programs[job.token] = replace(self._program(job), output=b"", act=None)
                self.finish(job.slurm_job_id, exit_code=143, cause="TERM")
            job.state, job.exit_code, job.signal = "CANCELLED", 0, 15


def _row(job: FakeSlurmJob) -> QueueRow:
    return QueueRow(job.slurm_job_id, job.state, job.reason, job.token, job.submission.unix_user)
