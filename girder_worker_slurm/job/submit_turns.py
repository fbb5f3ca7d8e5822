"""Which job is submitted next, and when.

There are only so many places in Slurm, for all users and for each, and so many submissions a minute; and Slurm may say
itself that it takes no more for now. Waiting for one of these costs no try: the job stays as it is, and its user is
told why. All decisions take the same time however many jobs wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from girder_worker_slurm.job.fair_queue import FairQueue
from girder_worker_slurm.job.state import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.errors import SubmitDeferred
    from girder_worker_slurm.job.live_job import LiveJob

_PAUSES = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
#: After an own job has ended the limit that Slurm named may have room again.
_SOON = 1.0


@dataclass(frozen=True)
class SubmitRules:
    """The limits of a site; 0 is no limit."""

    max_submitted: int = 5000
    max_submitted_per_user: int = 0
    submits_per_minute: float = 0.0
    #: Submissions that may be under way: what Slurm answers to one counts before all others are made.
    at_once: int = 16


@dataclass
class _Refusal:
    """Slurm takes no more for now: until when nothing is tried, and which jobs try it then.

    One at first, and no more at once than it has taken since: where each place is given back one by one, all that wait
    would only be refused again.
    """

    words: str
    until: float
    times: int = 1
    tried_by: set[LiveJob] = field(default_factory=set)
    taken: int = 0


class SubmitTurns:
    """Jobs that could be submitted, each user's in the order in which they came. Belongs to the supervising thread."""

    def __init__(self, clock: Clock, rules: SubmitRules) -> None:
        self._clock = clock
        self._rules = rules
        self._queue: FairQueue[LiveJob] = FairQueue()
        self._waiting: set[LiveJob] = set()
        #: User → jobs that have a place: in Slurm, or about to be.
        self._places: dict[str, set[LiveJob]] = {}
        self._taken = 0
        self._begun: set[LiveJob] = set()
        #: User → Slurm's refusal; None stands for all users.
        self._refusals: dict[str | None, _Refusal] = {}
        self._allowance = 1.0
        self._counted_at = clock.monotonic()

    def wait(self, job: LiveJob) -> None:
        """The job is ready and waits for its turn; one that had its turn before is not sent back to the end."""
        if job not in self._waiting:
            self._waiting.add(job)
            job.waits_since = job.waits_since or self._clock.monotonic()
            self._queue.put(job.user, job, first=job.had_turn or bool(job.state.earlier))

    def stop_waiting(self, job: LiveJob) -> None:
        """The job goes another way."""
        self._waiting.discard(job)
        job.waits_since = 0.0

    def settle(self, job: LiveJob) -> None:
        """Counts the job's place anew: call whenever its state may have changed."""
        if not job.is_busy:
            self._begun.discard(job)
            self._learn_from(job)
        if (job.state.is_in_slurm or job in self._begun) and not job.state.cluster:
            self._take_place(job)
        elif self._give_place_back(job) and (refusal := self._refusals.get(job.user)) is not None:
            refusal.until = min(refusal.until, self._clock.monotonic() + _SOON)

    def forget(self, job: LiveJob) -> None:
        """The job is gone."""
        self.stop_waiting(job)
        self._begun.discard(job)
        self._give_place_back(job)
        for refusal in self._refusals.values():
            refusal.tried_by.discard(job)

    def refused(self, job: LiveJob, error: SubmitDeferred) -> None:
        """Slurm takes no more jobs of this user, or of anybody, for now: he waits, with growing pauses."""
        key = None if error.is_for_all else job.user
        now = self._clock.monotonic()
        refusal = self._refusals.get(key)
        if refusal is None:
            self._refusals[key] = _Refusal(str(error), now + _PAUSES[0])
        elif now >= refusal.until:  # not by one that was under way when it began
            refusal.times = 0 if refusal.taken else refusal.times
            refusal.words, refusal.taken = str(error), 0
            refusal.until = now + _PAUSES[min(refusal.times, len(_PAUSES) - 1)]
            refusal.times += 1

    def next_jobs(self) -> Iterator[LiveJob]:
        """The jobs whose turn it is, to be submitted as they come."""
        if not self._queue:
            return
        self._count_allowance()
        while self._has_room() and self._is_open(None):
            job = self._queue.take(self._is_open_for)
            if job is None:
                return
            if job not in self._waiting:
                continue  # it left
            self._waiting.remove(job)
            if job.is_busy or job.state.phase is not Phase.RENDERED:
                continue
            self._begun.add(job)
            job.had_turn = True
            self._take_place(job)
            if self._rules.submits_per_minute:
                self._allowance -= 1
            for key in (None, job.user):
                if (refusal := self._refusals.get(key)) is not None:
                    refusal.tried_by.add(job)
            yield job

    def why(self, job: LiveJob) -> str:
        """What a waiting job waits for, in words for its user; empty if it does not wait, or waits for its turn only."""
        if job not in self._waiting:
            return ""
        for key in (None, job.user):
            if (refusal := self._refusals.get(key)) is not None and not refusal.taken:
                return f"Waiting: {refusal.words}"
        limit = self._rules.max_submitted_per_user
        if limit and len(self._places.get(job.user, ())) >= limit:
            return (
                f"Waiting: {limit} of your jobs {_are(limit)} in Slurm, as many as this site allows at once"
            )
        if self._taken >= self._rules.max_submitted:
            most = self._rules.max_submitted
            return f"Waiting: {most} {'job' if most == 1 else 'jobs'} {_are(most)} in Slurm, as many as this worker may have there"
        return "Waiting for its turn to be submitted"

    def _has_room(self) -> bool:
        rules = self._rules
        return self._taken < rules.max_submitted and len(self._begun) < rules.at_once and self._allowance >= 1

    def _is_open_for(self, user: str) -> bool:
        limit = self._rules.max_submitted_per_user
        return (not limit or len(self._places.get(user, ())) < limit) and self._is_open(user)

    def _is_open(self, key: str | None) -> bool:
        """Whether Slurm takes jobs; after a pause one is sent to see."""
        refusal = self._refusals.get(key)
        return refusal is None or (
            len(refusal.tried_by) < max(1, refusal.taken) and self._clock.monotonic() >= refusal.until
        )

    def _learn_from(self, job: LiveJob) -> None:
        """What came of a job's turn: those that Slurm took open the way for the others."""
        if not job.had_turn or job.state.phase is Phase.SUBMITTING:
            return
        has_been_taken = job.state.phase >= Phase.SUBMITTED and bool(job.state.slurm_job_id)
        if has_been_taken:
            job.had_turn = False
            job.waits_since = 0.0
        for key in (None, job.user):
            refusal = self._refusals.get(key)
            if refusal is None or job not in refusal.tried_by:
                continue
            refusal.tried_by.remove(job)
            if has_been_taken and self._clock.monotonic() >= refusal.until:
                refusal.taken += 1
                if refusal.taken >= self._rules.at_once:
                    del self._refusals[key]

    def _take_place(self, job: LiveJob) -> None:
        places = self._places.setdefault(job.user, set())
        if job not in places:
            places.add(job)
            self._taken += 1

    def _give_place_back(self, job: LiveJob) -> bool:
        """Whether one has become free because a job ended."""
        places = self._places.get(job.user)
        if places is None or job not in places:
            return False
        places.remove(job)
        self._taken -= 1
        if not places:
            del self._places[job.user]
        return job.state.phase >= Phase.DECIDED

    def _count_allowance(self) -> None:
        per_second = self._rules.submits_per_minute / 60
        if not per_second:
            return
        now = self._clock.monotonic()
        # At most a second's worth, or one, is saved up.
        self._allowance = min(max(1.0, per_second), self._allowance + (now - self._counted_at) * per_second)
        self._counted_at = now


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
