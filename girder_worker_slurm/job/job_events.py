"""What job scripts leave in the spool, brought into the records of their jobs."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.job.verdict import UNWRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_slurm.cluster.run_files import JobEvent
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services

logger = logging.getLogger(__name__)

#: How often the spool is listed in the way that a mount which remembers directories does not answer by itself.
ANEW_SECONDS = 1.0


class JobEvents:
    """Listens for the events of each job's current attempt. All methods belong to the supervising thread."""

    def __init__(self, services: Services, *, later: Callable[[LiveJob, float], None]) -> None:
        self._do = services
        self._later = later
        self._by_token: dict[str, LiveJob] = {}
        #: Jobs of earlier workers whose kept events could not be read so far.
        self._not_taken_up: dict[str, LiveJob] = {}
        #: Unix users whose spools cannot be read at the moment.
        self._unreadable: set[str] = set()
        self._next_anew = 0.0

    def knows(self, token: str) -> bool:
        """Whether this is the token of a job here: other workers may share the spool, and the queue."""
        return token in self._by_token

    def listen(self, job: LiveJob) -> None:
        """Listens for the job's current attempt from now on, and for no earlier one."""
        token = job.state.token
        if token == job.heard_token:
            return
        self._by_token.pop(job.heard_token, None)
        job.heard_token = token
        if token:
            self._by_token[token] = job

    def take_up(self, job: LiveJob) -> None:
        """Listens for a job of a worker that ended, and takes the events that it had moved out of the spool."""
        self.listen(job)
        if job.state.token and job.state.phase < Phase.DECIDED:
            try:
                events = self._do.runs_of(job.state).kept_events(job.state.token)
            except OSError as error:
                if job.task_id not in self._not_taken_up:
                    logger.warning("Job %s: its events cannot be read yet: %s", job.task_id, error)
                self._not_taken_up[job.task_id] = job
                return
            self._not_taken_up.pop(job.task_id, None)
            for event in events:
                self._take(job, event)

    def forget(self, job: LiveJob) -> None:
        """Listens no more for this job."""
        self._by_token.pop(job.heard_token, None)
        self._not_taken_up.pop(job.task_id, None)
        job.heard_token = ""

    def read(self) -> None:
        """Takes the new events out of the spools, and gives each to its job."""
        now = self._do.clock.monotonic()
        anew = bool(self._by_token) and now >= self._next_anew
        if anew:
            self._next_anew = now + ANEW_SECONDS
        for user in {"", *(job.state.unix_user for job in self._by_token.values())}:
            self._read(user, anew=anew)
        for job in list(self._not_taken_up.values()):
            if job.state.unix_user not in self._unreadable:
                self.take_up(job)

    def _read(self, unix_user: str, *, anew: bool) -> None:
        """Of the spool of one Unix user, who cannot speak for jobs of others."""

        def is_theirs(token: str) -> bool:
            job = self._by_token.get(token)
            return job is not None and job.state.unix_user == unix_user

        try:
            runs = self._do.runs_for(unix_user)
            events = runs.events(is_theirs, anew=anew)
        except OSError as error:
            if unix_user not in self._unreadable:
                logger.warning(
                    "The spool of events%s cannot be read: %s", unix_user and f" of {unix_user}", error
                )
            self._unreadable.add(unix_user)
            return
        if unix_user in self._unreadable:
            self._unreadable.discard(unix_user)
            logger.info("The spool of events%s can be read again", unix_user and f" of {unix_user}")
        for event in events:
            if not is_theirs(event.token):
                continue  # it is not what its name says
            with contextlib.suppress(OSError):  # it stays in the spool and is read again
                runs.keep(event)
                job = self._by_token.get(event.token)
                if job is not None:
                    self._take(job, event)

    def record(self, job: LiveJob) -> None:
        """Records what came for a job; nobody else may be working on it. Raises OSError, OwnershipLost."""
        while job.inbox:
            self._record(job, job.inbox[0])
            del job.inbox[0]

    def _take(self, job: LiveJob, event: JobEvent) -> None:
        if event.nonce != job.state.nonce:
            logger.warning(
                "Job %s: an event without the right nonce is ignored (%s)", job.task_id, event.path.name
            )
            return
        job.inbox.append(event)
        self._later(job, 0.0)

    def _record(self, job: LiveJob, event: JobEvent) -> None:
        state = job.state
        if state.phase >= Phase.DECIDED or event.token != state.token:
            return
        if state.slurm_job_id and event.slurm_job_id not in (
            state.slurm_job_id,
            self._do.runs_of(state).claimant(state.token),
        ):
            logger.warning(
                "Job %s: an event of Slurm job %s, which does not run it, is ignored",
                job.task_id,
                event.slurm_job_id,
            )
            return
        fields = event.entry
        if event.kind == "started" and state.started is None:
            job.record.append("started", **fields)
            job.has_words = True
        elif event.kind == "ended" and state.ended is None:
            job.record.append("ended", **fields)
        elif event.kind == "refused" and event.fields.get("why") == UNWRITABLE and state.ended is None:
            job.record.append("ended", **{**fields, "exit_code": 73, "cause": UNWRITABLE})
