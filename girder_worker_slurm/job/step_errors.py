"""What becomes of a job whose step raised: a wait, a retry, or its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import ContainerError
from girder_worker_slurm.errors import (
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

    from girder_worker_slurm.job.image_desk import ImageDesk
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.run_job import JobStory

logger = logging.getLogger(__name__)

_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
#: A registry that does not answer is asked again this often; then the job ends with that reason.
_IMAGE_TRIES = 5
#: The name of the sending of log and progress, which never ends a job.
UPDATE = "update"


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
    ) -> None:
        self._story = story
        self._images = images
        self._later = later
        self._forget = forget
        self._refused = refused

    def settle(self, job: LiveJob, name: str, error: BaseException) -> None:
        """Says how the job goes on after its step `name` raised. Raises OSError, OwnershipLost."""
        if isinstance(error, TurnOver):
            job.failures = 0
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
        log = logger.info if job.failures < len(_BACKOFF_SECONDS) else logger.warning
        log("Job %s: step %s is tried again in %.0f s: %s", job.task_id, name, seconds, error)
        self._later(job, seconds)
