"""Asks Slurm's accounting what a job used where the job itself could not tell: after its end, and for many at once.

Only a comfort. What is not answered soon is not asked for again, and a cluster without accounting is asked once.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from girder_worker_slurm.errors import ClusterUnreachable, JobDeleted, Unreachable
from girder_worker_slurm.girder.job_updates import AccessRefused, TransitionRefused
from girder_worker_slurm.job.services import DIRECT
from girder_worker_slurm.job.usage import ACCOUNTED_FILE, accounted_sentence, usage_of
from girder_worker_slurm.records.record import directory_name, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.cluster.slurm_accounting import AccountedUsage
    from girder_worker_slurm.girder.job_updates import JobUpdates
    from girder_worker_slurm.job.state import GirderJob, JobState

logger = logging.getLogger(__name__)

#: A job shows in the accounting within a second of its end; slurmdbd may be busy.
_SETTLED_SECONDS = 5.0
_EVERY_SECONDS = 60.0
_MOST_AT_ONCE = 200
_MOST_WAITING = 5000
_TRIES = 3


@dataclass
class _Waiting:
    slurm_job_id: str
    token: str
    record: str
    girder: GirderJob | None
    since: float
    tries: int = 0


class Accounting:
    """The jobs whose usage is still to be asked for. `ask` gives None where there is no accounting."""

    def __init__(
        self,
        ask: Callable[[Sequence[str]], Mapping[str, AccountedUsage] | None],
        updates: JobUpdates,
        clock: Clock,
        ended: Path,
    ) -> None:
        self._ask = ask
        self._updates = updates
        self._clock = clock
        self._ended = ended
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._next_at = 0.0
        self.is_absent = False

    def job_ended(self, task_id: str, state: JobState) -> None:
        """Takes note of a job that is over, if its own word leaves something open."""
        if self.is_absent or not _leaves_something_open(state):
            return
        entry = _Waiting(
            state.slurm_job_id, state.token, directory_name(task_id), state.girder, self._clock.monotonic()
        )
        with self._lock:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.append(entry)

    def is_due(self) -> bool:
        """Whether it is time to ask: once a minute at most."""
        now = self._clock.monotonic()
        with self._lock:
            return now >= self._next_at and any(now - one.since >= _SETTLED_SECONDS for one in self._waiting)

    def look(self) -> None:
        """Asks about the jobs that wait for it, with one command, and writes down and shows what it learns."""
        if not self.is_due():  # asked for more than once while no thread was free
            return
        now = self._clock.monotonic()
        with self._lock:
            self._next_at = now + _EVERY_SECONDS
            asked = [one for one in self._waiting if now - one.since >= _SETTLED_SECONDS][:_MOST_AT_ONCE]
            self._waiting = [one for one in self._waiting if one not in asked]
        try:
            found = self._ask([one.slurm_job_id for one in asked])
        except ClusterUnreachable as error:
            logger.info("Slurm's accounting did not answer: %s", error)
            found = {}
        if found is None:
            logger.info("This cluster has no accounting; it is not asked again")
            self.is_absent = True
            with self._lock:
                self._waiting.clear()
            return
        for one in asked:
            usage = found.get(one.slurm_job_id)
            if usage is not None and usage.token == one.token:
                self._keep(one, usage)
            elif one.tries + 1 < _TRIES:
                one.tries += 1
                with self._lock:
                    self._waiting.append(one)

    def _keep(self, one: _Waiting, usage: AccountedUsage) -> None:
        try:
            write_durably(self._ended / one.record / ACCOUNTED_FILE, json.dumps(asdict(usage)), sync=False)
        except OSError:  # removed meanwhile
            return
        if one.girder is None:
            return
        try:
            self._updates.update(one.girder, log=f"{accounted_sentence(usage)}\n")
        except (Unreachable, JobDeleted, AccessRefused, TransitionRefused) as error:
            logger.info("What job %s used could not be shown: %s", one.slurm_job_id, error)


def _leaves_something_open(state: JobState) -> bool:
    if state.cluster == DIRECT or not state.slurm_job_id or state.started is None:
        return False
    usage = usage_of(state)
    if usage is None or usage.memory_peak_mib is None or usage.cpu_seconds is None:
        return True
    nodes = state.started.get("nodes")
    return isinstance(nodes, int) and nodes > 1
