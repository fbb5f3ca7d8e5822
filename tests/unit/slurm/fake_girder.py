"""A pretended Girder that has nothing but jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from girder_worker_slurm.errors import GirderUnreachable, JobDeleted
from girder_worker_slurm.girder.job_updates import AccessRefused, JobAnswer, TransitionRefused
from girder_worker_slurm.job.state import GirderUser

if TYPE_CHECKING:
    from girder_worker_singularity.testing import FakeClock

#: What may follow what: girder_plugin_worker.status.CustomJobStatus.valid_celery_transitions of 5.0.21.
TRANSITIONS = {
    1: [0],
    2: [0, 1, 820],
    3: [2, 823],
    4: [820, 821, 822, 823, 824, 1, 2],
    5: [824, 0, 1, 2],
    824: [0, 1, 2],
}


@dataclass
class GirderJobOfFake:
    status: int = 1
    log: list[str] = field(default_factory=list)
    progress: float | None = None
    message: str | None = None
    statuses: list[int] = field(default_factory=list)
    created_at: float = 0.0
    #: When Girder was last told something: what it calls stale has not been for a week.
    updated_at: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.log)


class FakeGirder:
    """Girder's jobs, as `JobUpdates` sees them: transitions, and logs cut as Girder cuts them."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.jobs: dict[str, GirderJobOfFake] = {}
        #: When the jobs' tokens expire, as it says when asked; and how often it was.
        self.tokens_end_at = 0.0
        self.token_questions = 0
        self.is_unreachable = False
        #: The jobs for which it answers 500, and how often it did.
        self.stumbles_over: set[str] = set()
        self.stumbles = 0
        self.refuses_access = False
        #: Updates that arrive, but whose answer does not.
        self.lost_answers = 0
        self.puts = 0
        #: How many of the next updates find Girder away.
        self.silences = 0
        #: Whose jobs these are; None: Girder does not say.
        self.user: GirderUser | None = GirderUser("u1", "ada")
        self.user_questions = 0
        #: How many of the next questions for the user find Girder away.
        self.user_silences = 0
        #: What our plugin tells; an error is raised.
        self.settings: dict[str, object] | GirderUnreachable = {}

    def settings_of(self, job) -> dict[str, object]:
        if self.refuses_access:
            return {}
        self._find(job)
        if isinstance(self.settings, GirderUnreachable):
            raise self.settings
        return self.settings

    def update(
        self, job, *, status=None, log=None, overwrite=False, progress=None, message=None, keep_alive=False
    ) -> JobAnswer:
        found = self._find(job)
        if self.silences > 0:
            self.silences -= 1
            raise GirderUnreachable("Girder is being restarted")
        self.puts += 1
        if status is not None and int(status) != found.status:
            if found.status not in TRANSITIONS[int(status)]:
                raise TransitionRefused(f"{found.status} to {int(status)}")
            found.status = int(status)
            found.statuses.append(int(status))
        if log and overwrite:
            found.log = [log]
        elif log:
            found.log.append(log)
            found.log = found.log[-((4 * 1024**2) // len(log)) :]
        if status is not None or log or progress is not None or message or keep_alive:
            found.updated_at = self._clock.now()
        found.progress = found.progress if progress is None else progress
        found.message = message or found.message
        if self.lost_answers > 0:
            self.lost_answers -= 1
            raise GirderUnreachable("the answer was lost")
        return JobAnswer(found.status, "A title", found.created_at)

    def log(self, job) -> str:
        return self._find(job).text

    def user_of(self, job, message, tokens=()) -> GirderUser | None:
        del message, tokens
        self.user_questions += 1
        if self.refuses_access:
            return None
        self._find(job)
        if self.user_silences > 0:
            self.user_silences -= 1
            raise GirderUnreachable("Girder is being restarted")
        return self.user

    def token_ends_at(self, job) -> float:
        self._find(job)
        self.token_questions += 1
        return self.tokens_end_at

    def _find(self, job) -> GirderJobOfFake:
        if self.is_unreachable:
            raise GirderUnreachable("Girder is being restarted")
        if job.job_id in self.stumbles_over:
            self.stumbles += 1
            raise GirderUnreachable("Girder answered 500")
        if self.refuses_access:
            raise AccessRefused("the token has expired")
        if job.job_id not in self.jobs:
            raise JobDeleted(f"{job.job_id} is gone")
        return self.jobs[job.job_id]
