"""The one way out to a cluster: submit, find, list, describe, cancel.

A way to reach Slurm is one class with these methods; the contract suite (``tests/contract/test_cluster.py``)
runs against every one of them. Nothing here decides what an answer means for a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: A Slurm job id, digits only.
SlurmJobId = NewType("SlurmJobId", str)


@dataclass(frozen=True)
class Submission:
    """One job script and how it is to be submitted."""

    token: str
    script: Path
    #: Where Slurm writes what the script itself prints.
    output: Path
    #: sbatch options as (name, value); an empty value is a flag.
    options: tuple[tuple[str, str], ...] = ()
    #: The Unix user whose job it is to be; empty: the worker's own.
    unix_user: str = ""


@dataclass(frozen=True)
class QueueRow:
    """One job as the queue lists it."""

    slurm_job_id: SlurmJobId
    #: First word of Slurm's state, upper case: PENDING, RUNNING, COMPLETING, COMPLETED, ...
    state: str
    reason: str
    token: str
    #: The Unix user whose job it is; empty: the worker's own.
    unix_user: str = ""


@dataclass(frozen=True)
class Snapshot:
    """All our jobs in the queue, from one question to the controller."""

    rows: tuple[QueueRow, ...]
    #: Monotonic seconds when the question was asked, and how long the answer took.
    asked_at: float
    seconds: float

    def by_token(self) -> dict[str, list[QueueRow]]:
        """The rows of each token: one token may have been submitted twice."""
        rows: dict[str, list[QueueRow]] = {}
        for row in self.rows:
            rows.setdefault(row.token, []).append(row)
        return rows


@dataclass(frozen=True)
class JobDetail:
    """What the controller knows about one job."""

    slurm_job_id: SlurmJobId
    token: str
    state: str
    reason: str
    exit_code: int
    signal: int
    nodes: str
    restarts: int
    #: ``RunTime``, ``TimeLimit`` as Slurm prints them, for messages.
    run_time: str = ""
    time_limit: str = ""


class Cluster(Protocol):
    """A way to reach Slurm."""

    def submit(self, submission: Submission) -> SlurmJobId:
        """The id of the submitted job.

        Raises SubmitRejected (Slurm said no, in its own words), SubmitDeferred (a submit limit), or
        SubmitUnsure (no clear answer: the job may exist; look it up by token).
        """

    def find(self, token: str, unix_user: str = "") -> tuple[QueueRow, ...]:
        """The jobs with this name that are this user's, ended ones that Slurm still remembers included.

        Raises ClusterUnreachable.
        """

    def snapshot(self) -> Snapshot:
        """All our jobs that Slurm still remembers. Raises ClusterUnreachable, never gives a partial answer."""

    def describe(self, slurm_job_id: SlurmJobId) -> JobDetail | None:
        """One job in detail; None if the controller does not know it (any more). Raises ClusterUnreachable."""

    def cancel(self, tokens: Sequence[str], *, kill: bool = False, unix_user: str = "") -> None:
        """Asks Slurm to end all jobs of one user with these names; with `kill` by SIGKILL. A job that is gone is no error.

        By name: a controller that crashed gives ids out again (seen with Slurm 22.05). Of many names at once the ids are asked
        for first, and ordered by at once.

        Raises ClusterUnreachable. The end itself shows in the job's event or in the next snapshot.
        """
