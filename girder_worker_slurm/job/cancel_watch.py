"""Cancels that come while nobody asks Girder: Celery's list of revoked tasks, and what `girder-slurm cancel` left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.records.cancel_request import cancel_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_slurm.job.image_desk import ImageDesk
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services

_REQUESTS_PER_LOOK = 500
#: Without news all jobs are looked at as often: a file system may keep news back.
_LOOK_ANYWAY_SECONDS = 60.0


class CancelWatch:
    """Looks for cancels of all jobs. All methods belong to the supervising thread."""

    def __init__(
        self,
        services: Services,
        jobs: Mapping[str, LiveJob],
        images: ImageDesk,
        *,
        safely: Callable[[LiveJob, Callable[[], None]], None],
        later: Callable[[LiveJob, float], None],
    ) -> None:
        self._do = services
        self._jobs = jobs
        self._images = images
        self._safely = safely
        self._later = later
        self._news = ""
        self._look_anyway_at = 0.0
        self._unasked: list[str] = []

    def look(self) -> None:
        """Notes each new cancel in its job's record."""
        self._look_for_revoked()
        self._look_for_requests()

    def _look_for_revoked(self) -> None:
        revoked = [
            job for job in self._jobs.values() if not job.cancel_seen and self._do.is_revoked(job.task_id)
        ]
        for job in revoked:
            self._safely(job, partial(self._see_cancel, job, "in Girder"))

    def _look_for_requests(self) -> None:
        """Honours what `girder-slurm cancel` left: looks when there is news of it, and at jobs that are new here."""
        if not self._unasked:
            news, now = self._do.cancel_news(), self._do.clock.monotonic()
            # Noted before the jobs are looked at: what comes meanwhile is news again.
            if news != self._news or now >= self._look_anyway_at:
                self._news, self._look_anyway_at = news, now + _LOOK_ANYWAY_SECONDS
                self._unasked = list(self._jobs)
            else:
                self._unasked = [
                    task_id for task_id, job in self._jobs.items() if not job.is_asked_for_cancel
                ]
        some, self._unasked = self._unasked[:_REQUESTS_PER_LOOK], self._unasked[_REQUESTS_PER_LOOK:]
        for job in (self._jobs[task_id] for task_id in some if task_id in self._jobs):
            job.is_asked_for_cancel = True
            why = "" if job.cancel_seen else cancel_request(job.record.path)
            if why:
                self._safely(job, partial(self._see_cancel, job, why))

    def _see_cancel(self, job: LiveJob, why: str) -> None:
        job.cancel_seen = why
        if job.is_parked:
            self._images.leave(job)
        if not job.is_busy and job.state.phase < Phase.DECIDED:
            job.record.append("cancel", why=job.cancel_seen)
        self._later(job, 0.0)
