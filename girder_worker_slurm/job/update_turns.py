"""Whose log and progress go to Girder next. All jobs share one budget; the longest waiting comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_slurm.job.state import Phase

if TYPE_CHECKING:
    from collections.abc import Collection

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.run_job import JobStory

_LOOKS_PER_SECOND = 500


class UpdateTurns:
    """Gives running jobs their turn to be shown in Girder."""

    def __init__(
        self,
        story: JobStory,
        clock: Clock,
        *,
        per_second: float,
        interval_seconds: float,
        status_check_seconds: float,
    ) -> None:
        self._story = story
        self._per_second = per_second
        self._interval_seconds = interval_seconds
        self._status_check_seconds = status_check_seconds
        self._allowance = per_second
        self._counted_at = clock.monotonic()

    def choose(self, jobs: Collection[LiveJob], now: float) -> list[LiveJob]:
        """The jobs whose turn it is, at most as many as the budget has by now."""
        self._allowance = min(self._per_second, self._allowance + (now - self._counted_at) * self._per_second)
        self._counted_at = now
        if self._allowance < 1:
            return []
        wanting = [job for job in jobs if self._wants(job, now, len(jobs))]
        wanting.sort(key=lambda job: (job.announced, job.last_flush))
        chosen = wanting[: int(self._allowance)]
        self._allowance -= len(chosen)
        for job in chosen:
            job.last_flush = now
            job.has_news = False
            if now >= job.next_status_check:
                job.next_status_check = now + self._status_check_seconds
        return chosen

    def choose_waiting(self, jobs: Collection[LiveJob]) -> list[LiveJob]:
        """The jobs that wait for an image and have something new to show, as many as the budget has left."""
        chosen: list[LiveJob] = []
        for job in jobs:
            if self._allowance < 1:
                break
            if job.is_parked and job.image_phase != job.image_phase_shown and job.state.girder is not None:
                job.image_phase_shown = job.image_phase
                self._allowance -= 1
                chosen.append(job)
        return chosen

    def _wants(self, job: LiveJob, now: float, live: int) -> bool:
        if job.is_busy or job.is_parked or job.state.phase is not Phase.SUBMITTED or job.state.girder is None:
            return False
        if now < job.due_at and job.failures:
            return False
        if now - job.last_flush < self._interval_seconds:
            return False
        if not job.announced or now >= job.next_status_check or job.has_news:
            return True
        if job.state.started is None or now < job.next_log_look:
            return False
        # Looking costs a call to the file system: at most some hundred a second, however many jobs run.
        job.next_log_look = now + max(self._interval_seconds, live / _LOOKS_PER_SECOND)
        feed = self._story.feed(job)
        # Found once, it waits for its turn without another look.
        job.has_news = feed.has_new_output() or feed.has_pending
        return job.has_news
