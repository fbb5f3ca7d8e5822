"""Slurm's queue against the jobs: one listing for all, now and then.

It brings what the jobs cannot say themselves: why they wait, that they are held, that they died or are gone. A listing
that fails changes nothing about any job, and absence counts only when it was seen twice.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES, WAITING_STATES
from girder_worker_slurm.errors import Unreachable
from girder_worker_slurm.job.verdict import hopeless_wait, requeued, waiting_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from girder_worker_slurm.cluster.interface import QueueRow, Snapshot
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services

logger = logging.getLogger(__name__)

#: A job submitted this short a time before a listing may not be in it yet.
_SETTLE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 120.0
_SECOND_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class QueueRules:
    """How often the queue is listed, which jobs in it are ours, and how long a job's own word is waited for."""

    token_prefix: str
    poll_seconds: float
    event_grace_seconds: float


class QueueWatch:
    """Lists the queue in a thread of its own, and compares it with the jobs in the supervisor's."""

    def __init__(
        self,
        services: Services,
        rules: QueueRules,
        *,
        has_jobs_in_slurm: Callable[[], bool],
        knows_token: Callable[[str], bool],
        later: Callable[[LiveJob, float], None],
        in_pool: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._do = services
        self._rules = rules
        self._has_jobs_in_slurm = has_jobs_in_slurm
        self._knows_token = knows_token
        self._later = later
        self._in_pool = in_pool
        self._wake = wake
        self._found: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()
        self._look_now = threading.Event()
        #: Whether the next listing is wanted soon, for however many jobs.
        self._in_doubt = False
        self._orphans: set[str] = set()
        self._uncancelled: queue.SimpleQueue[tuple[list[str], str]] = queue.SimpleQueue()

    def run(self) -> None:
        """The thread: a listing every so often, for as long as there are jobs in Slurm."""
        failures = 0
        took = 0.0
        while not self._do.stopping.is_set():
            pause = self._rules.poll_seconds
            try:
                self.cancel_again()
                if self._has_jobs_in_slurm():
                    snapshot = self._do.cluster.snapshot()
                    failures = 0
                    took = snapshot.seconds
                    pause = max(pause, 10 * took)
                    self._found.put(snapshot)
                    self._wake()
            except Unreachable as error:
                failures += 1
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2 ** min(failures, 4))
                logger.warning("Slurm's queue could not be listed (%s); again in %.0f s", error, pause)
            except Exception:
                logger.exception("Slurm's queue could not be read")
            self._look_now.wait(pause)
            self._look_now.clear()
            if self._in_doubt:
                self._in_doubt = False
                # A controller that is slow to answer is not kept busy with this alone.
                self._do.stopping.wait(max(_SECOND_LOOK_SECONDS, took))

    def cancel_again(self) -> None:
        """Gives the orders to cancel once more that did not reach Slurm."""
        with contextlib.suppress(queue.Empty):
            for _ in range(self._uncancelled.qsize()):
                self._cancel(*self._uncancelled.get_nowait())

    def stop(self) -> None:
        """Lets the thread see that it is to end."""
        self._look_now.set()

    def snapshots(self) -> Iterator[Snapshot]:
        """The listings that have come since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._found.get_nowait()

    def compare(self, job: LiveJob, rows: Sequence[QueueRow], snapshot: Snapshot) -> None:
        """What a listing says of a job that is in Slurm; `rows` are those of its token."""
        state = job.state
        row = next((row for row in rows if row.slurm_job_id == state.slurm_job_id), None)
        if row is None:
            age = state.seconds_since_submission(self._do.clock.now())
            if snapshot.asked_at > self._do.clock.monotonic() - age + _SETTLE_SECONDS:
                job.missing += 1
                if job.missing >= 2:
                    self._later(job, 0.0)
                else:
                    self._look_soon()
            return
        job.missing = 0
        if row.state in FINAL_STATES:
            if not job.final_since:
                job.final_since = self._do.clock.monotonic()
                self._later(job, self._rules.event_grace_seconds)
            elif self._do.clock.monotonic() - job.final_since >= self._rules.event_grace_seconds:
                self._later(job, 0.0)
            return
        job.final_since = 0.0
        if state.started is not None and row.state in WAITING_STATES:
            self._see_back_in_queue(job, row)
            return
        job.back_in_queue = 0
        hopeless = hopeless_wait(row)
        if hopeless is not None and self._do.runs_of(state).claim(state.token, hopeless.code):
            job.waits_in_vain = hopeless
            self._later(job, 0.0)
            return
        text = waiting_text(row.state, row.reason)
        if state.started is None and text != job.waiting_message:
            job.waiting_message = text
            job.has_words = True

    def end_orphans(self, rows: Mapping[str, Sequence[QueueRow]]) -> None:
        """Cancels Slurm jobs of ours that no record knows, seen twice: left by a submission that was given up."""
        commands = self._do.command_tokens()
        strangers = {
            token
            for token, found in rows.items()
            if token.startswith(self._rules.token_prefix)
            and not self._knows_token(token)
            and token not in commands
            and any(row.state not in FINAL_STATES and row.state != "COMPLETING" for row in found)
        }
        again = strangers & self._orphans
        self._orphans = strangers
        if again:
            whose = {token: {row.unix_user for row in rows[token]} for token in again}
            # Elsewhere: it reads the records of all jobs.
            self._in_pool(partial(self._end_unless_live, whose))

    def _end_unless_live(self, whose: Mapping[str, set[str]]) -> None:
        """In a pool thread. Another worker may have taken a job over that this one had submitted."""
        gone = whose.keys() - self._do.live_tokens()
        for user in sorted(set().union(*(whose[token] for token in gone))):
            tokens = sorted(token for token in gone if user in whose[token])
            logger.warning(
                "Cancelling Slurm jobs that belong to no job of ours any more: %s", ", ".join(tokens)
            )
            self._cancel(tokens, user)

    def _see_back_in_queue(self, job: LiveJob, row: QueueRow) -> None:
        """A job that had started and waits again: its claim is taken, so no further start can have an effect."""
        job.back_in_queue += 1
        if job.back_in_queue < 2:
            # The listing may be older than the start.
            self._look_soon()
        else:
            job.waits_in_vain = requeued(job.state, row.slurm_job_id)
            self._later(job, 0.0)

    def _cancel(self, tokens: list[str], unix_user: str) -> None:
        """In a pool thread: an order that does not reach Slurm is given again with the next listing."""
        try:
            self._do.cluster.cancel(tokens, unix_user=unix_user)
        except (Unreachable, OSError) as error:
            logger.warning("%s", error)
            self._uncancelled.put((tokens, unix_user))

    def _look_soon(self) -> None:
        """A second listing a little later, to be sure that a job is gone."""
        self._in_doubt = True
        self._look_now.set()
