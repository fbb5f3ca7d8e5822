"""The life of one job, top to bottom.

`JobStory.next_step` says what is to be done next; each step does one thing, records it, and may be repeated after
a crash. A step that cannot go on raises: `Unreachable` (the same step again, later), `JobError` (the job ends with
this sentence), `JobCancelled`, `JobDeleted`. Between the steps the supervisor watches events and the queue.

::

    admit     understand the message, ask Girder
    stage     inputs into the run directory
    render    image → SIF, mounts, script, argument file
    submit    intent, sbatch, id
      ...     the supervisor watches: events, queue, log; the steps `resolve`, `cancel`, `judge` as needed
    judge     verdict
    deliver   outputs to Girder
    report    status and log to Girder, result to Celery
    clean     run directory
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from girder_worker_slurm.celery_worker.message import REQUEUED_HEADER
from girder_worker_slurm.errors import (
    JobCancelled,
    JobDeleted,
    JobError,
    MessageUndecodable,
    NotSupported,
    OwnershipLost,
)
from girder_worker_slurm.girder import inputs, outputs
from girder_worker_slurm.girder.ingest import ingest_images
from girder_worker_slurm.girder.job_updates import CANCELLED, FINAL, AccessRefused, JobStatus
from girder_worker_slurm.girder.token_life import TOKEN_SECONDS, moment_of_id
from girder_worker_slurm.job.delivery import RESULT_FILE, Delivery
from girder_worker_slurm.job.girder_side import GirderSide
from girder_worker_slurm.job.preparation import Preparation
from girder_worker_slurm.job.services import DIRECT, Later
from girder_worker_slurm.job.slurm_side import SlurmSide, seconds_to_next_cancel
from girder_worker_slurm.job.state import DELETED, GirderJob, Outcome, Phase, Verdict
from girder_worker_slurm.job.verdict import final_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from girder_worker_singularity.errors import ContainerError
    from girder_worker_slurm.girder.log_feed import LogFeed
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services, StoryRules
    from girder_worker_slurm.job.state import JobState

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True)
class Step:
    """One thing to do for a job, and the pool of threads that does it."""

    name: str
    pool: str


_ADMIT = Step("admit", "girder")
_INGEST = Step("ingest", "image")
_STAGE = Step("stage", "stage")
_RENDER = Step("render", "submit")
_SUBMIT = Step("submit", "submit")
_RESOLVE = Step("resolve", "submit")
CANCEL = Step("cancel", "submit")
_JUDGE = Step("judge", "girder")
_DELIVER = Step("deliver", "deliver")
_REPORT = Step("report", "girder")
_CLEAN = Step("clean", "clean")


class JobStory:
    """The steps of every job."""

    def __init__(self, services: Services, rules: StoryRules) -> None:
        self._do = services
        self._rules = rules
        self._girder = GirderSide(services, rules)
        self._slurm = SlurmSide(services, rules, self._girder)
        self._preparation = Preparation(services, rules, self._girder)
        self._delivery = Delivery(services, rules, self._girder)

    @property
    def event_grace_seconds(self) -> float:
        """How long the job's own word is waited for after Slurm said that it ended."""
        return self._rules.event_grace_seconds

    def next_step(self, job: LiveJob) -> Step | None:
        """The step a job needs now; None while it waits for Slurm."""
        state = job.state
        if state.phase >= Phase.DECIDED:
            if state.phase is Phase.DECIDED:
                return _DELIVER
            return _REPORT if state.phase is Phase.DELIVERED else _CLEAN
        if state.phase is Phase.SUBMITTING:
            return _RESOLVE
        if state.phase is Phase.SUBMITTED:
            return self._while_in_slurm(job)
        if state.cancel:
            return CANCEL
        if state.phase is Phase.ACCEPTED:
            return _ADMIT
        if state.phase is Phase.ADMITTED:
            return _INGEST if state.kind == "ingest" else _STAGE
        return _RENDER if state.phase is Phase.STAGED else _SUBMIT

    def _while_in_slurm(self, job: LiveJob) -> Step | None:
        state = job.state
        now = self._do.clock.monotonic()
        if state.ended is not None or job.waits_in_vain is not None:
            return _JUDGE
        if job.final_since and now - job.final_since >= self._rules.event_grace_seconds:
            return _JUDGE
        if job.missing >= 2 or (state.cluster == DIRECT and now >= job.due_at):
            return _JUDGE
        wants_cancel = bool(state.cancel or job.cancel_seen)
        if wants_cancel and (
            not job.cancel_sent_at or now - job.cancel_sent_at >= seconds_to_next_cancel(job)
        ):
            return CANCEL
        return None

    def run(self, step: Step, job: LiveJob) -> None:
        """Runs one step."""
        steps: dict[str, Callable[[LiveJob], None]] = {
            "admit": self.admit,
            "ingest": self.ingest,
            "stage": self._preparation.stage,
            "render": self._preparation.render,
            "submit": self._slurm.submit,
            "resolve": self._slurm.resolve,
            "cancel": self._slurm.cancel,
            "judge": self._slurm.judge,
            "deliver": self.deliver,
            "report": self.report,
            "clean": self.clean,
        }
        if self._note_cancel(job) and step.name not in ("resolve", "judge", "deliver", "report", "clean"):
            step = CANCEL
        steps[step.name](job)

    def cancel_in_slurm(self, jobs: Sequence[LiveJob]) -> dict[LiveJob, Exception]:
        """Cancels jobs of one Unix user that are in Slurm, with as few orders as possible; returns what came of each but a success."""
        outcome: dict[LiveJob, Exception] = {}
        for job in jobs:
            try:
                self._note_cancel(job)
            except (OSError, OwnershipLost) as error:
                outcome[job] = error
        ordered = [job for job in jobs if job not in outcome]
        try:
            if ordered:
                self._slurm.cancel_in_slurm(ordered)
        except Exception as error:  # noqa: BLE001 - handed to the supervising thread, which decides for each job
            return {
                **outcome,
                **dict.fromkeys((job for job in ordered if job.state.phase < Phase.DECIDED), error),
            }
        waiting = (job for job in ordered if job.state.phase < Phase.DECIDED)
        return {**outcome, **{job: Later(seconds_to_next_cancel(job)) for job in waiting}}

    def _note_cancel(self, job: LiveJob) -> bool:
        """Records a cancel that was seen but not recorded so far. Raises OwnershipLost, OSError."""
        job.record.check_ownership()
        if not job.cancel_seen or job.state.cancel or job.state.phase >= Phase.REPORTED:
            return False
        if self._girder.has_begun_to_tell(job):
            return False  # from here on Girder itself says whether it came in time
        job.record.append("cancel", why=job.cancel_seen)
        return True

    def admit(self, job: LiveJob) -> None:
        """Understands the message, and asks Girder whose job it is and whether it is still wanted, unless that has time."""
        message = job.record.message()
        headers = message["headers"]
        now = self._do.clock.now()
        if (eta := _moment(headers.get("eta"))) is not None and eta > now:
            raise Later(min(eta - now, _LONGEST_PAUSE_SECONDS))
        girder = self._girder.girder_job(message)
        if (expires := _moment(headers.get("expires"))) is not None and expires < now:
            job.record.append("admitted", kind="container", girder=_girder_entry(girder))
            raise JobCancelled("the task expired before it was taken")
        kind = "ingest" if message["task"].endswith("ingest_from_docker") else "container"
        try:
            decoded = self._do.decode(message)
            image = "" if kind == "ingest" else inputs.image_of(decoded)
        except (MessageUndecodable, NotSupported) as error:
            job.record.append("admitted", kind=kind, girder=_girder_entry(girder))
            if isinstance(error, MessageUndecodable):
                self._do.keep_unhandled(message, str(error))
            raise
        job.decoded = decoded
        user, revived, tokens_end_at = None, False, 0.0
        tokens = inputs.tokens_of((decoded.args, decoded.kwargs, decoded.hooks))
        # Of a job that fetches and brings nothing Girder is asked once: before it is submitted.
        is_asked = bool(tokens or decoded.hooks) or kind == "ingest" or REQUEUED_HEADER in headers
        if girder is not None:
            if is_asked:
                answer = self._girder.enter_queue(girder)
                revived = bool(headers.get(REQUEUED_HEADER)) and answer.status == JobStatus.ERROR
                if not revived and (answer.status in CANCELLED or answer.status in FINAL):
                    raise JobCancelled("in Girder")
                girder = GirderJob(girder.url, girder.token, answer.title)
                created_at = answer.created_at
            else:
                created_at = moment_of_id(girder.job_id) or job.state.accepted_at
            tokens_end_at = created_at and created_at + TOKEN_SECONDS
            user = self._do.users.user_of(girder, message, tokens)
            job.user_is_asked = True
        job.record.append(
            "admitted",
            kind=kind,
            image=image,
            girder=_girder_entry(girder),
            user=user.as_entry() if user is not None else None,
            revived=revived,
            tokens_end_at=tokens_end_at,
            asked=is_asked,
        )
        if kind == "container":
            # Who may not run jobs hears it now, before anything is fetched.
            self._rules.options_of(user)
            self._rules.unix_user_of(user)
        if revived:
            self._girder.feed(job).note(
                "Sent again. Girder lets no job leave the state ERROR, so the state stays; the outputs come."
            )

    def ingest(self, job: LiveJob) -> None:
        """Registers the CLIs of images in Girder."""
        decoded = self._do.decoded(job)
        self._girder.announce(job)
        feed = self._girder.feed(job)
        failed = ingest_images(
            decoded,
            api_url=self._rules.staging.api_url,
            images=self._do.images,
            runner=self._do.runner,
            clock=self._do.clock,
            apptainer=self._rules.apptainer,
            image_rules=self._rules.containers.images,
            jobs_root=self._rules.jobs_root,
            check=self._do.checker(job),
            say=lambda news: self._girder.say(
                job, feed, news.line, progress=news.progress, message=news.message
            ),
        )
        if failed:
            names = ", ".join(failed)
            verdict = Verdict(
                Outcome.ERROR,
                "ingest_failed",
                f"These images could not be ingested: {names}. The reasons are above.",
            )
        else:
            verdict = Verdict(Outcome.SUCCESS, "ingested", "All images were ingested.")
        job.record.decide(verdict)

    def deliver(self, job: LiveJob) -> None:
        """Brings the outputs to Girder; of an analysis that failed, what helps to find out why."""
        end = final_outcome(job.state)
        if job.state.kind == "container":
            if end.outcome is Outcome.SUCCESS:
                self._delivery.bring_outputs(job)
            elif end.outcome is Outcome.ERROR and job.state.token:
                self._delivery.bring_artifacts(job)
        job.record.append("delivered")

    def report(self, job: LiveJob) -> None:
        """Tells Girder and Celery the end."""
        end = final_outcome(job.state)
        if job.state.girder is None and end.outcome is not Outcome.ABANDONED:
            # Refused before it was admitted, or a task without a Girder job.
            girder = self._girder.girder_job(job.record.message())
            if girder is not None:
                job.record.append(
                    "admitted", kind=job.state.kind or "container", girder=_girder_entry(girder)
                )
        if job.state.girder is not None and end.outcome is not Outcome.ABANDONED:
            try:
                end = self._girder.report(job, end)
                if end.outcome is Outcome.CANCELED and not job.state.cancel:
                    job.record.append("cancel", why="in Girder")
            except JobDeleted:
                end = Verdict(Outcome.ABANDONED, "deleted", "The Girder job was deleted.")
            except AccessRefused as error:
                self._girder.feed(job).note(f"Girder does not take the end of this job any more: {error}")
                job.record.append("untold")
                logger.warning(
                    "Job %s ended (%s), but Girder does not take that: %s Tell it with: girder-slurm retry-upload %s",
                    job.task_id,
                    end.code,
                    error,
                    job.task_id,
                )
        if not job.state.result_sent:
            self._send_result(job, end)
            job.record.append("result_sent")
        job.record.append("reported", outcome=end.outcome.value)

    def end_unreported(self, job: LiveJob) -> None:
        """Ends a job whose end can be told neither to Girder nor to Celery, because its task is nonsense."""
        end = final_outcome(job.state)
        job.record.append("reported", outcome=end.outcome.value)

    def clean(self, job: LiveJob) -> None:
        """Removes inputs and outputs; log and record stay for some days."""
        state = job.state
        if state.token and state.owes_outputs:
            logger.warning(
                "The outputs of job %s are not all in Girder. They are kept in %s; bring them there with: girder-slurm"
                " retry-upload %s",
                job.task_id,
                self._do.runs_of(state).path(state.token) / "volume",
                job.task_id,
            )
        elif state.token:
            self._do.runs_of(state).remove_data(state.token)
        # Done before, unless the worker died in between; an attempt that is still alive may have written since.
        for earlier in state.earlier:
            self._do.runs_of(earlier).remove_data(earlier.token)
        self._slurm.take_out_of_queue(state)
        job.record.append("closed", at=self._do.clock.now())
        self._do.job_ended(job.task_id, job.state)

    def flush(self, job: LiveJob) -> None:
        """Sends what Girder has not got of a running job: status, log, progress."""
        job.record.check_ownership()
        self._girder.flush(job)

    def show_waiting(self, state: JobState, phase: str) -> None:
        """Shows how far the image is that a job waits for."""
        self._girder.show_waiting(state, phase)

    def notice_deleted(self, job: LiveJob) -> None:
        """The Girder job is gone: cancel, and report nothing."""
        if job.state.phase < Phase.REPORTED and job.state.cancel != DELETED:
            job.record.append("cancel", why=DELETED)
            job.cancel_seen = DELETED

    def end_with(self, job: LiveJob, error: JobError | ContainerError) -> None:
        """Ends a job that is not in Slurm with this error's sentence."""
        code = _ERROR_CODES.get(type(error).__name__, "error")
        job.record.decide(Verdict(Outcome.ERROR, code, str(error)))

    def feed(self, job: LiveJob) -> LogFeed:
        """The job's log on its way to Girder."""
        return self._girder.feed(job)

    def _send_result(self, job: LiveJob, end: Verdict) -> None:
        message = job.record.message()
        try:
            decoded = self._do.decoded(job)
        except MessageUndecodable:
            return
        task = str(message["task"])
        if end.outcome is Outcome.SUCCESS:
            try:
                value = json.loads((job.record.path / RESULT_FILE).read_text(encoding="utf-8"))
            except FileNotFoundError:
                value = []
            except ValueError:  # a power cut took it
                value = outputs.known_results(decoded)
            self._do.results.success(task, job.task_id, decoded, value)
        elif end.outcome is Outcome.ERROR:
            self._do.results.failure(task, job.task_id, decoded, end.sentence)
        else:
            self._do.results.revoked(task, job.task_id, decoded, end.sentence)


_ERROR_CODES = {
    "OutputRefused": "output_refused",
    "SubmitRejected": "submit_rejected",
    "UserRefused": "user_refused",
    "OptionRefused": "option_refused",
    "InputUnavailable": "input_unavailable",
    "MessageUndecodable": "undecodable",
    "NotSupported": "not_supported",
    "ImageNotFound": "image_not_found",
    "ImageNotAllowed": "image_not_allowed",
    "ImageNotInStore": "image_not_found",
    "SignatureInvalid": "image_not_allowed",
    "RegistryRefused": "registry_refused",
    "ConversionFailed": "conversion_failed",
}


def _girder_entry(girder: GirderJob | None) -> dict[str, str] | None:
    return None if girder is None else {"url": girder.url, "token": girder.token, "title": girder.title}


def _moment(value: object) -> float | None:
    """A time in a Celery header, in seconds since the epoch; None if there is none."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
