"""The life of one job, top to bottom.

`JobStory.next_step` says what is to be done next; each step does one thing, records it, and may be repeated after
a crash. A step that cannot go on raises: `Unreachable` (the same step again, later), `JobError` (the job ends with
this sentence), `JobCancelled`, `JobDeleted`. Between the steps the supervisor watches events and the queue.

::

    admit     ask Girder, understand the message
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
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from girder_worker_slurm.celery_worker.message import REQUEUED_HEADER, decode
from girder_worker_slurm.errors import (
    JobCancelled,
    JobDeleted,
    JobError,
    MessageUndecodable,
    NotSupported,
)
from girder_worker_slurm.girder import inputs, outputs
from girder_worker_slurm.girder.ingest import ingest_images
from girder_worker_slurm.girder.job_updates import CANCELLED, FINAL, AccessRefused, JobStatus
from girder_worker_slurm.job.girder_side import GirderSide
from girder_worker_slurm.job.preparation import Preparation
from girder_worker_slurm.job.services import DIRECT, Later
from girder_worker_slurm.job.slurm_side import CANCEL_AGAIN_SECONDS, SlurmSide
from girder_worker_slurm.job.state import DELETED, GirderJob, Outcome, Phase, Verdict
from girder_worker_slurm.job.verdict import final_outcome
from girder_worker_slurm.records.record import directory_name, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.errors import ContainerError
    from girder_worker_slurm.girder.log_feed import LogFeed
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services, StoryRules
    from girder_worker_slurm.job.state import JobState

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
_CANCEL = Step("cancel", "submit")
_JUDGE = Step("judge", "girder")
_DELIVER = Step("deliver", "deliver")
_REPORT = Step("report", "girder")
_CLEAN = Step("clean", "deliver")


class JobStory:
    """The steps of every job."""

    def __init__(self, services: Services, rules: StoryRules) -> None:
        self._do = services
        self._rules = rules
        self._girder = GirderSide(services, rules)
        self._slurm = SlurmSide(services, rules, self._girder)
        self._preparation = Preparation(services, rules, self._girder)

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
            return _CANCEL
        if state.phase is Phase.ACCEPTED:
            return _ADMIT
        if state.phase is Phase.ADMITTED:
            return _INGEST if state.kind == "ingest" else _STAGE
        return _RENDER if state.phase is Phase.STAGED else _SUBMIT

    def _while_in_slurm(self, job: LiveJob) -> Step | None:
        state = job.state
        now = self._do.clock.monotonic()
        if state.ended is not None:
            return _JUDGE
        if job.final_since and now - job.final_since >= self._rules.event_grace_seconds:
            return _JUDGE
        if job.missing >= 2 or (state.cluster == DIRECT and now >= job.due_at):
            return _JUDGE
        wants_cancel = bool(state.cancel or job.cancel_seen)
        if wants_cancel and (not job.cancel_sent_at or now - job.cancel_sent_at >= CANCEL_AGAIN_SECONDS):
            return _CANCEL
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
        job.record.check_ownership()
        if job.cancel_seen and not job.state.cancel and job.state.phase < Phase.REPORTED:
            job.record.append("cancel", why=job.cancel_seen)
            if step.name not in ("resolve", "judge", "deliver", "report", "clean"):
                step = _CANCEL
        steps[step.name](job)

    def admit(self, job: LiveJob) -> None:
        """Asks Girder whether the job is still wanted, and understands the message."""
        message = job.record.message()
        headers = message["headers"]
        now = self._do.clock.now()
        if (eta := _moment(headers.get("eta"))) is not None and eta > now:
            raise Later(min(eta - now, _LONGEST_PAUSE_SECONDS))
        girder = self._girder.girder_job(message)
        revived = False
        if (expires := _moment(headers.get("expires"))) is not None and expires < now:
            job.record.append("admitted", kind="container", girder=_girder_entry(girder))
            raise JobCancelled("the task expired before it was taken")
        if girder is not None:
            try:
                answer = self._girder.enter(girder, JobStatus.QUEUED)
            except AccessRefused as error:
                raise JobDeleted(str(error)) from error
            revived = bool(headers.get(REQUEUED_HEADER)) and answer.status == JobStatus.ERROR
            if not revived and (answer.status in CANCELLED or answer.status in FINAL):
                raise JobCancelled("in Girder")
            girder = GirderJob(girder.url, girder.token, answer.title)
        kind = "ingest" if message["task"].endswith("ingest_from_docker") else "container"
        try:
            decoded = decode(message, self._do.celery_app)
            image = "" if kind == "ingest" else inputs.image_of(decoded)
        except (MessageUndecodable, NotSupported) as error:
            job.record.append("admitted", kind=kind, girder=_girder_entry(girder))
            if isinstance(error, MessageUndecodable):
                self._do.keep_unhandled(message, str(error))
            raise
        job.decoded = decoded
        job.record.append("admitted", kind=kind, image=image, girder=_girder_entry(girder), revived=revived)
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
        """Brings the outputs to Girder."""
        state = job.state
        end = final_outcome(state)
        if end.outcome is Outcome.SUCCESS and state.kind == "container":
            decoded = self._do.decoded(job)
            try:
                if decoded.hooks:
                    self._girder.ask_if_wanted(job)
                results = outputs.deliver(
                    job.record,
                    decoded,
                    run=self._do.runs.path(state.token),
                    name=directory_name(job.task_id),
                    api_url=self._rules.staging.api_url,
                    check=self._do.checker(job),
                )
            except JobCancelled:
                if not job.state.cancel:
                    job.record.append("cancel", why=job.cancel_seen or "in Girder")
                results = []
            write_durably(job.record.path / "result.json", json.dumps(results, default=str), sync=False)
        elif end.outcome is Outcome.ERROR and state.kind == "container" and state.token:
            for problem in outputs.after_failure(
                self._do.decoded(job),
                job.record,
                api_url=self._rules.staging.api_url,
                name=directory_name(job.task_id),
                run=self._do.runs.path(state.token),
                check=self._do.checker(job),
            ):
                self._girder.feed(job).note(f"An artifact could not be kept: {problem}")
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
            except JobDeleted:
                end = Verdict(Outcome.ABANDONED, "deleted", "The Girder job was deleted.")
            except AccessRefused as error:
                self._girder.feed(job).note(f"Girder does not take the end of this job any more: {error}")
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
        keeps_outputs = state.verdict is not None and state.verdict.code in ("output_refused", "internal")
        if state.token and not keeps_outputs:
            self._do.runs.remove_data(state.token)
        job.record.append("closed", at=self._do.clock.now())

    def flush(self, job: LiveJob) -> None:
        """Sends what Girder has not got of a running job: status, log, progress."""
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
            stored = job.record.path / "result.json"
            value = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else []
            self._do.results.success(task, job.task_id, decoded, value)
        elif end.outcome is Outcome.ERROR:
            self._do.results.failure(task, job.task_id, decoded, end.sentence)
        else:
            self._do.results.revoked(task, job.task_id, decoded, end.sentence)


_ERROR_CODES = {
    "OutputRefused": "output_refused",
    "SubmitRejected": "submit_rejected",
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
