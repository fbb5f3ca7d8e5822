"""What Girder is told about a job, and what it answers: status, log, progress, and whether the job is still wanted."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_slurm.celery_worker.message import girder_job_of
from girder_worker_slurm.errors import GirderUnreachable, JobDeleted, OutputRefused, Unreachable
from girder_worker_slurm.girder.job_updates import (
    CANCELLED,
    FINAL,
    AccessRefused,
    JobStatus,
    TransitionRefused,
)
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.job.retries import retry_sentence
from girder_worker_slurm.job.state import Outcome, Verdict
from girder_worker_slurm.job.usage import duration_text, usage_of
from girder_worker_slurm.records.record import write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from girder_worker_slurm.girder.job_updates import JobAnswer
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services, StoryRules
    from girder_worker_slurm.job.state import GirderJob, JobState

logger = logging.getLogger(__name__)

_MUTE_SECONDS = 3600.0
#: A silence of Girder that a job's log tells of.
_TOLD_SILENCE_SECONDS = 60.0
#: Slicer CLI Web cancels jobs, whenever Girder starts, that were not updated for a week.
HEARTBEAT_SECONDS = 12 * 3600.0
#: The first one after a start: most jobs are over by then.
FIRST_HEARTBEAT_SECONDS = 3600.0
_STATUS = {
    Outcome.SUCCESS: JobStatus.SUCCESS,
    Outcome.ERROR: JobStatus.ERROR,
    Outcome.CANCELED: JobStatus.CANCELED,
}
_LAST_MESSAGE = {Outcome.SUCCESS: "Completed", Outcome.ERROR: "Failed", Outcome.CANCELED: "Cancelled"}


class GirderSide:
    """The steps' conversation with Girder."""

    def __init__(self, services: Services, rules: StoryRules) -> None:
        self._do = services
        self._rules = rules
        #: A Girder that kept a submission waiting is not asked before the next ones for as long as that took.
        self._left_alone_until = 0.0

    def girder_job(self, message: Mapping[str, Any]) -> GirderJob | None:
        """Where the job of a message is reported to; None for a task without a Girder job."""
        return girder_job_of(message, self._rules.staging.api_url)

    def enter(self, girder: GirderJob, status: JobStatus) -> JobAnswer:
        """Moves a Girder job to a state it may be in or beyond already; returns where it is."""
        try:
            return self._do.updates.update(girder, status=status)
        except TransitionRefused:
            return self._do.updates.update(girder)

    def enter_queue(self, girder: GirderJob) -> JobAnswer:
        """Shows that somebody has the job; returns where it is. Raises JobDeleted if its token is not (or no more) good."""
        try:
            return self.enter(girder, JobStatus.QUEUED)
        except AccessRefused as error:
            raise JobDeleted(str(error)) from error

    def announce(self, job: LiveJob) -> None:
        """Shows the job as RUNNING, once."""
        if job.state.girder is not None and not job.announced:
            self.notice(job, self.enter(job.state.girder, JobStatus.RUNNING))
            job.announced = True

    def announce_before_submission(self, job: LiveJob) -> str:
        """Shows a job as RUNNING, with what its log has so far, of which Girder was not asked yet; returns its title.

        The title is empty if Girder was asked before. Raises JobCancelled, JobDeleted.
        """
        if job.state.girder is None or job.state.is_asked or job.announced:
            return ""
        begun = self._do.clock.monotonic()
        if begun < self._left_alone_until:
            # The threads that wait here are those which submit and cancel.
            msg = "Girder did not answer for another job a moment ago."
            raise GirderUnreachable(msg)
        try:
            answer = self._send(job, job.state.girder)
        except AccessRefused as error:
            if 0 < job.state.tokens_end_at <= self._do.clock.now():
                # It has waited for a week: it runs as any other whose token expires, and its outputs are kept.
                self._mute(job, error)
                return ""
            raise JobDeleted(str(error)) from error
        except GirderUnreachable:
            failed = self._do.clock.monotonic()
            self._left_alone_until = failed + (failed - begun)
            raise
        job.last_flush = self._do.clock.monotonic()
        self._do.checker(job)()
        return answer.title

    def ask_if_wanted(self, job: LiveJob) -> None:
        """Raises JobCancelled if the job was cancelled while nobody looked, as while the worker was down."""
        if job.state.girder is not None:
            try:
                self.notice(job, self.enter(job.state.girder, JobStatus.RUNNING))
            except AccessRefused as error:
                kept = self._do.runs_of(job.state).path(job.state.token) / "volume"
                msg = f"{error} The outputs are kept in {kept}."
                raise OutputRefused(msg) from error
            job.announced = True
        self._do.checker(job)()

    def notice(self, job: LiveJob, answer: JobAnswer) -> None:
        """Takes a cancel, or an end that somebody else gave the job, from one of Girder's answers."""
        if job.state.is_revived and answer.status == JobStatus.ERROR:
            return
        if answer.status in CANCELLED or answer.status in FINAL:
            job.cancel_seen = job.cancel_seen or "in Girder"

    def feed(self, job: LiveJob) -> LogFeed:
        """The job's log on its way to Girder."""
        output = Path(job.state.log_path) if job.state.log_path else None
        if job.feed is None:
            job.feed = LogFeed(
                job.record.path, output, self._do.runs_of(job.state), limit_bytes=self._rules.log_limit_bytes
            )
        else:
            job.feed.follow(output, self._do.runs_of(job.state))
        return job.feed

    def tell_retries(self, job: LiveJob) -> None:
        """Says in the job's log, once, that the last attempt is over and another one begins."""
        if job.state.earlier:
            self.feed(job).note_try(len(job.state.earlier), retry_sentence(job.state))

    def say(
        self, job: LiveJob, feed: LogFeed, line: str, *, progress: float | None = None, message: str = ""
    ) -> None:
        """Adds a line, if it is one, to the log of a job that is not in Slurm, and sends it with progress (0 to 1) and text."""
        if line:
            feed.note(line)
        feed.progress = progress
        job.waiting_message = message or job.waiting_message
        self.flush(job)

    def flush(self, job: LiveJob) -> None:
        """Sends what Girder has not got of a running job: status, log, progress. Notes a cancel in the answer."""
        if job.state.girder is not None:
            try:
                self._send(job, job.state.girder)
            except AccessRefused as error:
                self._mute(job, error)

    def _send(self, job: LiveJob, girder: GirderJob) -> JobAnswer:
        feed = self.feed(job)
        self._tell_silence(job, girder, feed)
        feed.read()
        if feed.has_doubt:
            feed.settle_doubt(self._do.updates.log(girder))
        update = feed.next_update()
        started = job.state.started is not None
        message = feed.message if started else job.waiting_message
        progress = feed.progress
        feed.progress = None
        now = self._do.clock.monotonic()
        try:
            answer = self._do.updates.update(
                girder,
                status=None if job.announced else JobStatus.RUNNING,
                log=update.text if update else None,
                overwrite=bool(update and update.overwrite),
                progress=progress,
                message=message or ("Running" if started and not job.started_shown else None),
                keep_alive=now >= job.next_heartbeat,
            )
        except TransitionRefused:
            # Cancelled meanwhile, or already further than RUNNING.
            answer = self._do.updates.update(girder)
            if update is not None:
                feed.settle_doubt("")
        else:
            if update is not None:
                feed.update_arrived(update)
        job.announced = True
        if now >= job.next_heartbeat:
            job.next_heartbeat = now + HEARTBEAT_SECONDS
        job.started_shown = started
        self.notice(job, answer)
        return answer

    def _tell_silence(self, job: LiveJob, girder: GirderJob, feed: LogFeed) -> None:
        """Says in the job's log, once, for how long Girder was away. Raises GirderUnreachable while it still is."""
        now = self._do.clock.monotonic()
        if job.silent_since and now - job.silent_since >= _TOLD_SILENCE_SECONDS:
            self._do.updates.update(girder)
            job.silence_seconds = max(job.silence_seconds, now - job.silent_since)
            job.silent_since = 0.0
        if job.silence_seconds >= _TOLD_SILENCE_SECONDS:
            feed.note(
                f"Girder did not answer as it should for {duration_text(job.silence_seconds)}. What needed it was made up for."
            )
        job.silence_seconds = 0.0

    def show_waiting(self, state: JobState, phase: str) -> None:
        """Shows what a job waits for, or that somebody still works on it. What cannot be sent is not sent again."""
        if state.girder is None:
            return
        # Of one that was not asked for, nobody has told yet that somebody has it.
        statuses = (None,) if state.is_asked else (JobStatus.QUEUED, None)
        with contextlib.suppress(Unreachable, JobDeleted, AccessRefused):
            for status in statuses:
                with contextlib.suppress(TransitionRefused):
                    self._do.updates.update(
                        state.girder, status=status, message=phase or None, keep_alive=not phase
                    )
                    return

    def _mute(self, job: LiveJob, why: AccessRefused) -> None:
        """The token has expired: nothing more can be shown, but the job goes on and its outputs stay on disk."""
        logger.warning("Job %s goes on, but nothing of it can be shown: %s", job.task_id, why)
        job.last_flush = self._do.clock.monotonic() + _MUTE_SECONDS

    @staticmethod
    def has_begun_to_tell(job: LiveJob) -> bool:
        """Whether Girder may have the job's end already."""
        return _told_file(job).exists()

    def report(self, job: LiveJob, end: Verdict) -> Verdict:
        """Sends the rest of the log and the final state; returns the end that Girder shows then."""
        girder = job.state.girder
        assert girder is not None  # noqa: S101 - the caller looked
        feed = self.feed(job)
        self._tell_silence(job, girder, feed)
        told = _told_file(job)
        if told.exists():
            # Girder may have taken it although its answer got lost: from here on only Girder's own state can change the end.
            end = _told_before(told) or end
        else:
            feed.read(final=True)
            usage = usage_of(job.state)
            if usage is not None and usage.sentence():
                feed.note(usage.sentence())
            feed.note(end.sentence)
            write_durably(told, json.dumps(end.as_entry()), sync=False)
        if feed.has_doubt:
            feed.settle_doubt(self._do.updates.log(girder))
        status: JobStatus | None = None if job.state.is_revived else _STATUS[end.outcome]
        if status is JobStatus.SUCCESS and not job.announced:
            # From QUEUED Girder would refuse it. What it answers may be the end that was told before: no cancel.
            self.enter(girder, JobStatus.RUNNING)
            job.announced = True
        while True:
            update = feed.next_update()
            is_last = update is None or update.end == feed.written_bytes
            try:
                answer = self._do.updates.update(
                    girder,
                    log=update.text if update else None,
                    overwrite=bool(update and update.overwrite),
                    status=status if is_last else None,
                    progress=1.0 if is_last and status is JobStatus.SUCCESS else None,
                    message=_LAST_MESSAGE[end.outcome] if is_last else None,
                )
            except TransitionRefused:
                if update is not None:
                    feed.settle_doubt("")
                end = self._settle_status(girder, end)
                if _STATUS[end.outcome] is status and not feed.has_pending:
                    return end
                status = _STATUS[end.outcome]
                continue
            if update is not None:
                feed.update_arrived(update)
            if is_last:
                if status is None or answer.status == status:
                    return end
                msg = f"Girder shows status {answer.status} for job {girder.job_id} after {status} was sent."
                raise Unreachable(msg)

    def _settle_status(self, girder: GirderJob, end: Verdict) -> Verdict:
        """Brings the Girder job to where the final status is allowed; a cancel that came meanwhile wins."""
        status = self._do.updates.update(girder).status
        if status in CANCELLED and end.outcome is not Outcome.CANCELED:
            return Verdict(Outcome.CANCELED, "cancelled", "Cancelled (in Girder).")
        if status == JobStatus.INACTIVE:
            self.enter(girder, JobStatus.QUEUED)
        if status in (JobStatus.INACTIVE, JobStatus.QUEUED):
            self.enter(girder, JobStatus.RUNNING)
            return end
        if status in FINAL:
            raise JobDeleted(f"The Girder job {girder.job_id} has ended already with status {status}.")
        return end


def _told_file(job: LiveJob) -> Path:
    return job.record.path / "told"


def _told_before(file: Path) -> Verdict | None:
    """The end that was on its way to Girder; None where an older version, or a power cut, left something else."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return Verdict(Outcome(told["outcome"]), str(told["code"]), str(told["sentence"]))
    except (ValueError, TypeError, KeyError):
        return None
