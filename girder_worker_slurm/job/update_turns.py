"""Whose log and progress go to Girder next. All jobs share one budget; users take turns, the longest waiting of each first."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from girder_worker_slurm.job.girder_side import HEARTBEAT_SECONDS
from girder_worker_slurm.job.state import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.run_job import JobStory

_LOOKS_PER_SECOND = 500
#: What thousands wait for is asked now and then only.
_PLACES_PER_SECOND = 1000
#: How often a log is opened to see how long it is, which a network mount would answer from memory for a minute.
_ANEW_SECONDS = 5.0
#: Whoever waits shorter is not told what for: with many jobs that is most of them, and nobody reads so fast.
_PATIENCE_SECONDS = 5.0
_REASONS_PER_SECOND_OF_A_USER = 5
#: A job's log is looked at so long after its start, since many short ones have ended by then and are told of once: the
#: longer the more jobs its user has, who can hardly look at all of them.
_LEAST_FIRST_LOOK_SECONDS = 1.0
_LONGEST_FIRST_LOOK_SECONDS = 10.0
_FIRST_LOOKS_PER_SECOND_OF_A_USER = 25


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
        self._next_look_at_places = 0.0
        #: User → how many jobs they have, as counted a moment ago.
        self._crowds: Counter[str] = Counter()
        self._next_count = 0.0
        #: User → when one of their jobs had its turn.
        self._served: dict[str, float] = {}

    def choose(self, jobs: Collection[LiveJob], now: float, *, at_most: float = math.inf) -> list[LiveJob]:
        """The jobs whose turn it is, at most as many as the budget has by now.

        `at_most` is for how many there is room among those under way: a Girder that does not answer must not make all jobs
        wait for it, busy with their updates.
        """
        earned = (now - self._counted_at) * self._per_second
        self._allowance = min(self._per_second, self._allowance + earned, at_most)
        self._counted_at = now
        if self._allowance < 1:
            return []
        if now >= self._next_count:
            self._crowds = Counter(job.user for job in jobs)
            self._next_count = now + max(1.0, len(jobs) / _LOOKS_PER_SECOND)
        wanting = [job for job in jobs if self._wants(job, now, len(jobs))]
        wanting.sort(key=lambda job: (job.announced, job.last_flush))
        chosen = self._in_turns(wanting, now)
        for job in chosen:
            job.last_flush = now
            job.has_news = job.has_words = False
        return chosen

    def choose_waiting(
        self, jobs: Collection[LiveJob], now: float, why: Callable[[LiveJob], str]
    ) -> list[LiveJob]:
        """The jobs that wait for an image, or for a place in Slurm, and have something new to show, or have been silent for long.

        As many as the budget has left; the longest waiting first: how many bytes are there changes for all of them at
        once. `why` says what a job waits for that waits for a place.
        """
        if self._allowance < 1:
            return []
        wanting = []
        looks_at_places = now >= self._next_look_at_places
        if looks_at_places:
            self._next_look_at_places = now + max(self._interval_seconds, len(jobs) / _PLACES_PER_SECOND)
        for job in jobs:
            has_waited = job.waits_since and now - job.waits_since >= self._patience_seconds(job)
            is_silent = now >= job.next_heartbeat and job.state.phase < Phase.SUBMITTED
            if not (job.is_parked or (looks_at_places and has_waited) or is_silent):
                continue
            phase = job.image_phase if job.is_parked else why(job)
            is_new = bool(phase) and phase != job.image_phase_shown
            if (
                (is_new or is_silent)
                and job.state.girder is not None
                and now - job.last_flush >= self._interval_seconds
            ):
                job.image_phase = phase
                wanting.append(job)
        wanting.sort(key=lambda job: job.last_flush)
        chosen = self._in_turns(wanting, now)
        for job in chosen:
            job.last_flush = now
            job.image_phase_shown = job.image_phase
            job.next_heartbeat = now + HEARTBEAT_SECONDS
        return chosen

    def _patience_seconds(self, job: LiveJob) -> float:
        return max(_PATIENCE_SECONDS, self._crowds[job.user] / _REASONS_PER_SECOND_OF_A_USER)

    def _first_look_seconds(self, job: LiveJob) -> float:
        wanted = self._crowds[job.user] / _FIRST_LOOKS_PER_SECOND_OF_A_USER
        return min(max(_LEAST_FIRST_LOOK_SECONDS, wanted), _LONGEST_FIRST_LOOK_SECONDS)

    def _in_turns(self, wanting: list[LiveJob], now: float) -> list[LiveJob]:
        """As many of these as the budget has: the first of each user, then the second, whoever was served last comes last."""
        if len(wanting) > int(self._allowance):
            places: Counter[str] = Counter()
            turns = []
            for order, job in enumerate(wanting):
                turns.append((places[job.user], self._served.get(job.user, 0.0), order))
                places[job.user] += 1
            turns.sort()
            self._served = {user: at for user, at in self._served.items() if user in places}
            wanting = [wanting[order] for _, _, order in turns[: int(self._allowance)]]
        else:
            self._served = {}
        self._served |= {job.user: now for job in wanting}
        self._allowance -= len(wanting)
        return wanting

    def _wants(self, job: LiveJob, now: float, live: int) -> bool:
        if job.is_busy or job.is_parked or job.state.phase is not Phase.SUBMITTED or job.state.girder is None:
            return False
        if now < job.due_at and job.failures:
            return False
        if now - job.last_flush < self._interval_seconds:
            return False
        silent = now - job.last_flush
        if not job.announced or silent >= self._status_check_seconds or job.has_news:
            return True
        if job.state.started is None:
            return job.has_words and silent >= self._patience_seconds(job)
        if not job.first_log_look:
            job.first_log_look = now + self._first_look_seconds(job)
        if now < max(job.first_log_look, job.next_log_look):
            return False
        if job.has_words:
            return True
        # Looking costs a call to the file system: at most some hundred a second, however many jobs run.
        job.next_log_look = now + max(self._interval_seconds, live / _LOOKS_PER_SECOND)
        # Found once, it waits for its turn without another look.
        try:
            feed = self._story.feed(job)
            anew = now >= job.next_log_opening
            if anew:
                job.next_log_opening = now + _ANEW_SECONDS
            job.has_news = feed.has_new_output(anew=anew) or feed.has_pending
        except OSError:  # the job's files cannot be reached for now; asked again at the next look
            job.has_news = False
        return job.has_news
