"""What becomes of a job whose step raised: a wait, a retry, or its end."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import ContainerError
from girder_worker_slurm.errors import (
    GirderUnreachable,
    JobCancelled,
    JobDeleted,
    JobError,
    OwnershipLost,
    RecordDamaged,
    SubmitDeferred,
    TurnOver,
    Unreachable,
)
from girder_worker_slurm.job.services import Later, Parked
from girder_worker_slurm.job.state import Outcome, Phase, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.job.image_desk import ImageDesk
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.run_job import JobStory

logger = logging.getLogger(__name__)

_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
#: A registry that does not answer is asked again this often; then the job ends with that reason.
_IMAGE_TRIES = 5
#: After so long without an answer for anybody, the next answer is news to all who wait for Girder.
_SILENCE_SECONDS = 5.0
#: The name of the sending of log and progress, which never ends a job.
UPDATE = "update"
#: What has asked Girder whenever it went well.
_ASKS_GIRDER = frozenset({UPDATE, "admit", "report"})


class StepErrors:
    """Decides about errors of steps. All methods belong to the supervising thread."""

    def __init__(
        self,
        story: JobStory,
        images: ImageDesk,
        *,
        later: Callable[[LiveJob, float], None],
        forget: Callable[[LiveJob], None],
        refused: Callable[[LiveJob, SubmitDeferred], None],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._story = story
        self._images = images
        self._later = later
        self._forget = forget
        self._refused = refused
        #: Task id → the jobs whose last try Girder did not answer, and when it last answered somebody.
        self._waiting_for_girder: dict[str, LiveJob] = {}
        self._answered_at = -math.inf

    def went_well(self, job: LiveJob, name: str) -> None:
        """Takes note of a step that did not raise: jobs that wait for a Girder that was away need not wait longer."""
        self._end_silence(job)
        now = self._clock.monotonic()
        if (
            name not in _ASKS_GIRDER
            or job.state.girder is None
            or (name == "admit" and not job.state.is_asked)
        ):
            return
        if now - self._answered_at >= _SILENCE_SECONDS:
            for waiting in self._waiting_for_girder.values():
                if not waiting.is_busy:
                    self._later(waiting, 0.0)
            self._waiting_for_girder.clear()
        self._answered_at = now

    def forget(self, job: LiveJob) -> None:
        """Takes note that the job is over, or somebody else's."""
        self._waiting_for_girder.pop(job.task_id, None)

    def settle(self, job: LiveJob, name: str, error: BaseException) -> None:
        """Says how the job goes on after its step `name` raised. Raises OSError, OwnershipLost."""
        self._note_silence(job, error)
        if isinstance(error, (Later, TurnOver)):
            self._later(job, error.seconds)
        elif isinstance(error, Parked):
            self._images.wait(job, error.image, error.policy)
        elif isinstance(error, JobCancelled):
            if not job.state.cancel:
                job.record.append("cancel", why=str(error) or "in Girder")
            self._later(job, 0.0)
        elif isinstance(error, JobDeleted):
            logger.info("Job %s: %s", job.task_id, error)
            self._story.notice_deleted(job)
            self._later(job, 0.0)
        elif isinstance(error, OwnershipLost):
            logger.warning("%s", error)
            self._forget(job)
        elif isinstance(error, SubmitDeferred):
            logger.info("Job %s waits: %s", job.task_id, error)
            self._refused(job, error)
            self._later(job, 0.0)
        elif isinstance(error, Unreachable) or (
            isinstance(error, ContainerError) and error.retryable and job.failures < _IMAGE_TRIES
        ):
            self._retry(job, name, error)
        elif isinstance(error, (JobError, ContainerError)):
            self._story.end_with(job, error)
            self._later(job, 0.0)
        elif isinstance(error, (OSError, RecordDamaged)):
            logger.error("Job %s: step %s failed (%s); trying again", job.task_id, name, error)
            self._retry(job, name, error)
        else:
            self._after_bug(job, name, error)

    def _note_silence(self, job: LiveJob, error: BaseException) -> None:
        if isinstance(error, GirderUnreachable):
            job.silent_since = job.silent_since or self._clock.monotonic()
            self._waiting_for_girder[job.task_id] = job
            return
        self._waiting_for_girder.pop(job.task_id, None)
        if isinstance(error, TurnOver):
            job.failures = 0
            self._end_silence(job)

    def _end_silence(self, job: LiveJob) -> None:
        self._waiting_for_girder.pop(job.task_id, None)
        if job.silent_since:
            job.silence_seconds = max(job.silence_seconds, self._clock.monotonic() - job.silent_since)
            job.silent_since = 0.0

    def _after_bug(self, job: LiveJob, name: str, error: BaseException) -> None:
        logger.error("Job %s: unexpected error in step %s", job.task_id, name, exc_info=error)
        gives_up = name in ("deliver", "report") and job.failures >= len(_BACKOFF_SECONDS)
        if gives_up and name == "report":
            # Nobody can be told; a record that never ends would help nobody either.
            self._story.end_unreported(job)
            self._later(job, 0.0)
            return
        if (job.state.phase >= Phase.SUBMITTING and not gives_up) or name == UPDATE:
            # The Slurm job must not be lost for a mistake of ours.
            self._retry(job, name, error)
            return
        sentence = f"The worker met an unexpected error in step {name}: {type(error).__name__}: {error}. Its log has the details."
        job.record.decide(Verdict(Outcome.ERROR, "internal", sentence))
        self._later(job, 0.0)

    def _retry(self, job: LiveJob, name: str, error: BaseException) -> None:
        seconds = _BACKOFF_SECONDS[min(job.failures, len(_BACKOFF_SECONDS) - 1)]
        job.failures += 1
        # An update has no step of its own that would be made again.
        job.has_news = job.has_news or name == UPDATE
        log = logger.info if job.failures < len(_BACKOFF_SECONDS) else logger.warning
        log("Job %s: step %s is tried again in %.0f s: %s", job.task_id, name, seconds, error)
        self._later(job, seconds)
