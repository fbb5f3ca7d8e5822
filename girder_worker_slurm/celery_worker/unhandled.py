"""Messages that this worker cannot run: kept, explained on their Girder job, never requeued in a loop."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.celery_worker.message import girder_job_of, store_message
from girder_worker_slurm.errors import JobDeleted, Unreachable
from girder_worker_slurm.girder.job_updates import AccessRefused, JobStatus, TransitionRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.girder.job_updates import JobUpdates
    from girder_worker_slurm.job.state import GirderJob
    from girder_worker_slurm.records.jobs_root import JobsRoot

logger = logging.getLogger(__name__)

_TRIES = 20
_RETRY_SECONDS = 15.0
#: So long one that waits for its next try holds up the others.
_TURN_SECONDS = 1.0


def missing_package(task: str) -> str:
    """The distribution that most likely brings a task, by the first word of its name."""
    return task.split(".", 1)[0].replace("_", "-") or "the package that defines it"


class UnhandledMessages:
    """Takes the messages that Celery would discard."""

    def __init__(
        self,
        root: JobsRoot,
        updates: JobUpdates,
        clock: Clock,
        run_in_background: Callable[[Callable[[], None]], None],
        *,
        api_url: str = "",
    ) -> None:
        self._root = root
        self._updates = updates
        self._clock = clock
        self._run = run_in_background
        self._api_url = api_url

    def unknown_task(self, message: Any) -> None:
        """Keeps a message whose task is not installed, then acknowledges it."""
        stored = store_message(message)
        task = stored["task"]
        why = (
            f"The task {task or '(unnamed)'} is not installed in this worker. Install `{missing_package(task)}` in its"
            f" environment, restart the worker, and run: girder-slurm requeue {stored['task_id']}"
        )
        self._keep(stored, why, message)

    def broken_message(self, message: Any, error: object) -> None:
        """Keeps a message that is no task message or cannot be decoded, then acknowledges it."""
        stored = store_message(message)
        what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._keep(stored, f"The message cannot be decoded: {what}.", message)

    def guarded(self, receive: Callable[[Any], None]) -> Callable[[Any], None]:
        """Celery's way in, in which no message can end the consumer: it would come again after each restart.

        Seen with Celery 5.7: a header `task` that is a list raises TypeError out of the event loop.
        """

        def receive_any(message: Any) -> None:
            try:
                receive(message)
            except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
                if message.acknowledged:
                    logger.exception("A message that was taken already led to an error; the worker goes on")
                    return
                self.broken_message(message, error)

        return receive_any

    def _keep(self, stored: Mapping[str, Any], why: str, message: Any) -> None:
        try:
            place = self._root.keep_unhandled(stored, why)
        except OSError as error:
            # Not acknowledged, it stays with the broker and comes again with the next connection.
            logger.error("%s It cannot be kept now (%s).", why, error)  # noqa: TRY400 - no bug, a full disk
            return
        logger.error("%s (kept in %s)", why, place)
        message.ack()
        job = girder_job_of(stored, self._api_url)
        if job is not None:
            self._run(partial(self._tell, job, f"{why}\n"))

    def _tell(self, job: GirderJob, why: str, *, tries_left: int = _TRIES, not_before: float = 0.0) -> None:
        """Tries it once; what did not go is tried again after the other messages, which another Girder may wait for."""
        wait = not_before - self._clock.monotonic()
        if wait > 0:
            self._clock.sleep(min(wait, _TURN_SECONDS))
        if wait > _TURN_SECONDS:
            self._run(partial(self._tell, job, why, tries_left=tries_left, not_before=not_before))
            return
        try:
            self._fail(job, why)
        except (JobDeleted, AccessRefused):
            return
        except Unreachable:
            if tries_left == 1:
                logger.error("Girder could not be told about job %s: %s", job.job_id, why)  # noqa: TRY400 - no bug
                return
            later = self._clock.monotonic() + _RETRY_SECONDS
            self._run(partial(self._tell, job, why, tries_left=tries_left - 1, not_before=later))

    def _fail(self, job: GirderJob, why: str) -> None:
        try:
            self._updates.update(job, status=JobStatus.ERROR, log=why)
        except TransitionRefused:
            # A job that nobody has queued yet must be queued before it can fail.
            try:
                self._updates.update(job, status=JobStatus.QUEUED)
                self._updates.update(job, status=JobStatus.ERROR, log=why)
            except TransitionRefused:
                return
