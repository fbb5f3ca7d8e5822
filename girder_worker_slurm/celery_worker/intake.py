"""Task messages on their way in: message → record on disk → acknowledged.

Runs in Celery's main process. The event loop only hands messages over; a writer thread makes them durable, many
with one sync of the directory, and has them acknowledged. Nothing is decoded and Girder is not asked.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.celery_worker.message import store_message
from girder_worker_slurm.records.record import Record, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.job.supervisor import Supervisor
    from girder_worker_slurm.records.jobs_root import JobsRoot

logger = logging.getLogger(__name__)

_BATCH = 200
_PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class _Arrival:
    stored: dict[str, Any]
    acknowledge: Callable[[], None]
    give_back: Callable[[], None]


class Intake:
    """Writes records and acknowledges messages.

    `pause` returns once no more messages come; `resume` lets them come again.
    """

    def __init__(
        self,
        root: JobsRoot,
        supervisor: Supervisor,
        clock: Clock,
        *,
        max_accepted: int,
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self._root = root
        self._supervisor = supervisor
        self._clock = clock
        self._max_accepted = max_accepted
        self._pause = pause
        self._resume = resume
        self._arrivals: queue.SimpleQueue[_Arrival | None] = queue.SimpleQueue()
        self._is_broken = False
        self.is_paused = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gw-intake", daemon=True)

    def start(self) -> None:
        """Starts the writer."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the writer; what it has not written goes back to the queue with the connection."""
        self._stop.set()
        self._arrivals.put(None)
        self._thread.join(5.0)

    def take(self, message: Any, acknowledge: Callable[[], None], give_back: Callable[[], None]) -> None:
        """Takes a message over from Celery's event loop; raises ValueError for a task without an id."""
        stored = store_message(message)
        if not stored["task_id"]:
            msg = "the task has no id"
            raise ValueError(msg)
        self._arrivals.put(_Arrival(stored, acknowledge, give_back))

    def _run(self) -> None:
        while not self._stop.is_set():
            batch = self._next_batch()
            try:
                if batch:
                    self._write(batch)
                self._check_limits()
            except Exception:
                # What was not acknowledged stays with the broker and comes again with the next connection.
                logger.exception("Tasks could not be taken; the taking goes on")

    def _next_batch(self) -> list[_Arrival]:
        batch: list[_Arrival] = []
        with contextlib.suppress(queue.Empty):
            first = self._arrivals.get(timeout=_PROBE_SECONDS if not self.is_paused else 1.0)
            while first is not None:
                batch.append(first)
                if len(batch) >= _BATCH:
                    break
                first = self._arrivals.get_nowait()
        return batch

    def _write(self, batch: list[_Arrival]) -> None:
        records: list[Record] = []
        try:
            for arrival in batch:
                record = self._create(arrival.stored)
                if record is not None:
                    records.append(record)
            sync_directory(self._root.records)
        except OSError:
            logger.exception("Tasks cannot be taken; they go back to the queue until the disk can be written")
            # Stop consuming first: what is given back would come again at once.
            self._is_broken = True
            self._stop_consuming()
            for arrival in batch:
                arrival.give_back()
        else:
            for arrival in batch:
                arrival.acknowledge()
        finally:
            # Whatever happened: a message that comes again finds its record, and takes it for one that is carried.
            for record in records:
                self._supervisor.accept(record)

    def _create(self, stored: dict[str, Any]) -> Record | None:
        """The new record; None for a task that was taken before: delivered again, or sent twice."""
        if self._root.has(stored["task_id"]):
            logger.info("Task %s is known already", stored["task_id"])
            return None
        return Record.create(self._root.records, stored, worker_id=self._root.worker_id, at=self._clock.now())

    def _check_limits(self) -> None:
        live = self._supervisor.live_count
        if not self.is_paused and live >= self._max_accepted:
            logger.warning("%d jobs are accepted, the most allowed; the queue waits in RabbitMQ", live)
            self._stop_consuming()
        elif self.is_paused and live < max(1, self._max_accepted * 9 // 10) and self._can_write():
            self.is_paused = self._is_broken = False
            self._resume()

    def _stop_consuming(self) -> None:
        self.is_paused = True
        self._pause()

    def _can_write(self) -> bool:
        if not self._is_broken:
            return True
        probe = self._root.path / "tmp" / "intake-probe"
        try:
            probe.write_bytes(b"\0" * 65536)
            probe.unlink()
        except OSError:
            return False
        return True
