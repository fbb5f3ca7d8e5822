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
import secrets
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from girder_worker_singularity.container import (
    ContainerSpec,
    container_arguments,
    container_argv,
    container_environment,
    environment_file_text,
)
from girder_worker_slurm.celery_worker.message import REQUEUED_HEADER, DecodedTask, decode
from girder_worker_slurm.cluster.interface import SlurmJobId, Submission
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.errors import (
    JobCancelled,
    JobDeleted,
    JobError,
    MessageUndecodable,
    NotSupported,
    OutputRefused,
    SubmitRejected,
    SubmitUnsure,
    Unreachable,
    WorkerStopping,
)
from girder_worker_slurm.girder import inputs, outputs
from girder_worker_slurm.girder.datalist import is_datalist_request
from girder_worker_slurm.girder.ingest import ingest_images, read_descriptions
from girder_worker_slurm.girder.job_updates import (
    CANCELLED,
    FINAL,
    AccessRefused,
    JobStatus,
    TransitionRefused,
)
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.job.state import DELETED, GirderJob, Outcome, Phase, Verdict
from girder_worker_slurm.job.verdict import (
    cancelled,
    final_outcome,
    never_started,
    requeued,
    vanished,
    verdict_of_event,
    verdict_of_last_word,
    verdict_of_slurm,
)
from girder_worker_slurm.records.record import directory_name, write_durably
from girder_worker_slurm.script.render import (
    JobScript,
    argument_file,
    forbidden_head_option,
    render_script,
    sbatch_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.errors import ContainerError
    from girder_worker_singularity.sif_store import Sif, SifStore
    from girder_worker_slurm.cluster.direct_cluster import DirectCluster
    from girder_worker_slurm.cluster.interface import Cluster, JobDetail
    from girder_worker_slurm.cluster.run_directory import RunDirectories
    from girder_worker_slurm.girder.job_updates import JobAnswer, JobUpdates
    from girder_worker_slurm.job.live_job import LiveJob

#: How often a submission that never started is repeated before the job is given up.
_MAX_SUBMITS = 3
_KILL_AFTER_SECONDS = 60.0
_CANCEL_AGAIN_SECONDS = 20.0
_MUTE_SECONDS = 3600.0
_DIRECT = "direct"
_BEFORE_START = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"})


class ResultSender(Protocol):
    """Tells Celery callers how a task ended."""

    def success(self, task: str, task_id: str, decoded: DecodedTask, value: Any) -> None:
        """Sends links, chain and result. Raises Unreachable when the broker does not answer."""

    def failure(self, task: str, task_id: str, decoded: DecodedTask, sentence: str) -> None:
        """Sends errbacks and the failure."""

    def revoked(self, task: str, task_id: str, decoded: DecodedTask, sentence: str) -> None:
        """Sends the cancellation."""


@dataclass(frozen=True)
class StoryRules:
    """The settings that the steps need."""

    jobs_root: Path
    token_prefix: str
    apptainer: str
    slurm_options: tuple[tuple[str, str], ...]
    staging: inputs.StagingRules
    submit_script: Path | None = None
    logs_dir: Path | None = None
    log_limit_bytes: int = 3_000_000
    event_grace_seconds: float = 5.0
    #: Between two looks for a submission whose answer was lost.
    resolve_seconds: float = 5.0


@dataclass(frozen=True)
class Services:
    """What the steps act through."""

    celery_app: Any
    clock: Clock
    runner: CommandRunner
    cluster: Cluster
    #: Runs jobs on the worker's own host: for calls that somebody waits for.
    direct: DirectCluster
    runs: RunDirectories
    images: SifStore
    updates: JobUpdates
    results: ResultSender
    #: Whether Celery knows that this task was revoked.
    is_revoked: Callable[[str], bool]
    #: Keeps a message that cannot be run here: (message, why).
    keep_unhandled: Callable[[Mapping[str, Any], str], object]
    #: The tokens of all jobs that any worker on this root carries.
    live_tokens: Callable[[], set[str]] = set
    #: Set when the worker stops: steps end where they can be taken up again.
    stopping: threading.Event = field(default_factory=threading.Event)


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


class Parked(Exception):
    """The step waits for an image; it is run again when the image is there."""

    def __init__(self, image: str, policy: str) -> None:
        super().__init__(image)
        self.image = image
        self.policy = policy


class Later(Exception):
    """The step is to be run again after this many seconds; nothing is wrong."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class JobStory:
    """The steps of every job."""

    def __init__(self, services: Services, rules: StoryRules) -> None:
        self._do = services
        self._rules = rules

    @property
    def event_grace_seconds(self) -> float:
        """How long the job's own word is waited for after Slurm said that it ended."""
        return self._rules.event_grace_seconds

    # -- what comes next

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
        if job.missing >= 2 or (state.cluster == _DIRECT and now >= job.due_at):
            return _JUDGE
        wants_cancel = bool(state.cancel or job.cancel_seen)
        if wants_cancel and (not job.cancel_sent_at or now - job.cancel_sent_at >= _CANCEL_AGAIN_SECONDS):
            return _CANCEL
        return None

    def run(self, step: Step, job: LiveJob) -> None:
        """Runs one step."""
        steps: dict[str, Callable[[LiveJob], None]] = {
            "admit": self.admit,
            "ingest": self.ingest,
            "stage": self.stage,
            "render": self.render,
            "submit": self.submit,
            "resolve": self.resolve,
            "cancel": self.cancel,
            "judge": self.judge,
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

    # -- the steps

    def admit(self, job: LiveJob) -> None:
        """Asks Girder whether the job is still wanted, and understands the message."""
        message = job.record.message()
        headers = message["headers"]
        now = self._do.clock.now()
        if (eta := _moment(headers.get("eta"))) is not None and eta > now:
            raise Later(min(eta - now, _MUTE_SECONDS))
        girder = self._girder_job(message)
        revived = False
        if (expires := _moment(headers.get("expires"))) is not None and expires < now:
            job.record.append("admitted", kind="container", girder=_girder_entry(girder))
            raise JobCancelled("the task expired before it was taken")
        if girder is not None:
            try:
                answer = self._enter(girder, JobStatus.QUEUED)
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
            self._feed(job).note(
                "Sent again. Girder lets no job leave the state ERROR, so the state stays; the outputs come."
            )

    def ingest(self, job: LiveJob) -> None:
        """Registers the CLIs of images in Girder."""
        decoded = self._decoded(job)
        self._announce(job)
        feed = self._feed(job)
        failed = ingest_images(
            decoded,
            api_url=self._rules.staging.api_url,
            images=self._do.images,
            runner=self._do.runner,
            apptainer=self._rules.apptainer,
            jobs_root=self._rules.jobs_root,
            check=self.checker(job),
            say=lambda line: self._say(job, feed, line),
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

    def stage(self, job: LiveJob) -> None:
        """Begins an attempt and brings the inputs into its run directory."""
        decoded = self._decoded(job)
        state = job.state
        if not state.token:
            token = f"{self._rules.token_prefix}{secrets.token_hex(10)}"
            log = (
                self._rules.logs_dir / f"{directory_name(job.task_id)}.log" if self._rules.logs_dir else None
            )
            path = self._do.runs.path(token)
            state = job.record.append(
                "attempt",
                number=state.attempt + 1,
                token=token,
                nonce=secrets.token_hex(16),
                log_path=str(log or path / "output.log"),
            )
        # What an interrupted staging left is not trusted.
        self._do.runs.remove(state.token)
        run = self._do.runs.create(state.token)
        self._do.runs.write(state.token, "nonce", state.nonce.encode())
        task = inputs.stage(
            decoded,
            run=run,
            name=_mount_name(job.task_id),
            rules=self._rules.staging,
            check=self.checker(job),
        )
        write_durably(job.record.path / "task.json", json.dumps(task.as_json()), sync=False)
        job.record.append("staged", cluster=_DIRECT if self._is_waited_for(job, task) else "")

    def render(self, job: LiveJob) -> None:
        """Finds the image's SIF and writes script, argument file and environment file."""
        state = job.state
        task = inputs.StagedTask.from_json(
            json.loads((job.record.path / "task.json").read_text(encoding="utf-8"))
        )
        sif = job.sif or self._sif_at_hand(task)
        if sif is None:
            raise Parked(task.image, task.pull_policy)
        job.sif = None
        run = self._do.runs.path(state.token)
        spec = ContainerSpec(
            sif=str(sif.path),
            image=sif.config,
            mounts=task.mounts,
            environment=task.environment,
            environment_file=str(run / "environment"),
            scratch=str(run / "scratch"),
            working_dir=task.working_dir,
            entrypoint=task.entrypoint,
            gpu="nv" if task.wants_gpu or sif.config.needs_nvidia else None,
            hostname=task.hostname,
            network_none=task.without_network,
        )
        self._do.runs.write(
            state.token, "environment", environment_file_text(container_environment(spec)).encode()
        )
        arguments = task.arguments or (() if task.entrypoint is not None else sif.config.command)
        self._do.runs.write(state.token, "arguments", argument_file(arguments))
        head, container = self._container(state.token, spec)
        script = JobScript(
            token=state.token,
            run=str(run),
            spool=str(self._do.runs.spool),
            log=state.log_path,
            scratch=str(run / "scratch"),
            container=container,
            sbatch_head=head,
        )
        self._do.runs.write(state.token, "job.slurm", render_script(script).encode(), mode=0o700)
        if task.ignored_options:
            self._feed(job).note(
                f"These Docker options have no counterpart on a cluster: {', '.join(task.ignored_options)}."
            )
        job.record.append("rendered")

    def submit(self, job: LiveJob) -> None:
        """Records the intent, submits, records the id."""
        state = job.record.append("intent", durable=True)
        run = self._do.runs.path(state.token)
        submission = Submission(state.token, run / "job.slurm", run / "slurm.out", self._rules.slurm_options)
        try:
            slurm_job_id = self._cluster(job).submit(submission)
        except SubmitUnsure:
            raise
        except SubmitRejected as error:
            self._do.runs.claim(state.token, "refused by Slurm")
            raise SubmitRejected(str(error)) from error
        except Unreachable:
            # Slurm has certainly not taken it (a limit, or the command could not be run): no doubt to resolve.
            job.record.append("lost")
            raise
        self._submitted(job, slurm_job_id)

    def resolve(self, job: LiveJob) -> None:
        """After any doubt whether Slurm has the job: looks it up by its token, and submits again if it has not."""
        state = job.state
        # Whoever has the claim runs, or has run: its id is the one that counts.
        running = state.slurm_job_id or self._do.runs.claimant(state.token)
        if running:
            self._submitted(job, SlurmJobId(running))
            return
        rows = self._cluster(job).find(state.token)
        if state.cancel:
            self._cancel_unsure(job, [row.slurm_job_id for row in rows])
            return
        if rows:
            self._submitted(job, rows[-1].slurm_job_id)
            return
        job.missing += 1
        if job.missing < 2:
            raise Later(self._rules.resolve_seconds)
        # A request in a frozen controller may still surface; the claim then lets only one of the two start.
        job.missing = 0
        job.resubmits += 1
        if job.resubmits >= _MAX_SUBMITS:
            self._do.runs.claim(state.token, "given up")
            job.record.decide(never_started(state, job.resubmits))
            return
        job.record.append("lost")

    def cancel(self, job: LiveJob) -> None:
        """Ends the job because it was cancelled or deleted in Girder."""
        state = job.state
        if not state.is_in_slurm:
            job.record.decide(cancelled(state))
            return
        now = self._do.clock.monotonic()
        ids = [SlurmJobId(state.slurm_job_id)]
        if self._do.runs.claim(state.token, "cancelled"):
            # It has not started and cannot start any more, whatever Slurm does from here on.
            self._cluster(job).cancel(ids)
            job.record.decide(cancelled(state))
            return
        job.cancel_begun_at = job.cancel_begun_at or now
        self._cluster(job).cancel(ids, kill=now - job.cancel_begun_at >= _KILL_AFTER_SECONDS)
        job.cancel_sent_at = now
        raise Later(_CANCEL_AGAIN_SECONDS)

    def judge(self, job: LiveJob) -> None:
        """Decides how the job ended."""
        state = job.state
        if state.cancel and state.ended is not None:
            job.record.decide(cancelled(state))
            return
        verdict = verdict_of_event(state)
        if verdict is None:
            verdict = self._verdict_with_slurm(job)
        if verdict is not None:
            self._await_whole_log(job)
            job.record.decide(verdict)

    def deliver(self, job: LiveJob) -> None:
        """Brings the outputs to Girder."""
        state = job.state
        end = final_outcome(state)
        if end.outcome is Outcome.SUCCESS and state.kind == "container":
            decoded = self._decoded(job)
            try:
                if decoded.hooks:
                    self._ask_if_wanted(job)
                results = outputs.deliver(
                    job.record,
                    decoded,
                    run=self._do.runs.path(state.token),
                    name=_mount_name(job.task_id),
                    api_url=self._rules.staging.api_url,
                    check=self.checker(job),
                )
            except JobCancelled:
                if not job.state.cancel:
                    job.record.append("cancel", why=job.cancel_seen or "in Girder")
                results = []
            write_durably(job.record.path / "result.json", json.dumps(results, default=str), sync=False)
        elif end.outcome is Outcome.ERROR and state.kind == "container" and state.token:
            for problem in outputs.after_failure(
                self._decoded(job),
                job.record,
                api_url=self._rules.staging.api_url,
                name=_mount_name(job.task_id),
                run=self._do.runs.path(state.token),
                check=self.checker(job),
            ):
                self._feed(job).note(f"An artifact could not be kept: {problem}")
        job.record.append("delivered")

    def report(self, job: LiveJob) -> None:
        """Tells Girder and Celery the end."""
        end = final_outcome(job.state)
        if job.state.girder is None and end.outcome is not Outcome.ABANDONED:
            # Refused before it was admitted, or a task without a Girder job.
            girder = self._girder_job(job.record.message())
            if girder is not None:
                job.record.append(
                    "admitted", kind=job.state.kind or "container", girder=_girder_entry(girder)
                )
        if job.state.girder is not None and end.outcome is not Outcome.ABANDONED:
            try:
                end = self._report_to_girder(job, end)
            except JobDeleted:
                end = Verdict(Outcome.ABANDONED, "deleted", "The Girder job was deleted.")
            except AccessRefused as error:
                self._feed(job).note(f"Girder does not take the end of this job any more: {error}")
        if not job.state.result_sent:
            self._send_result(job, end)
            job.record.append("result_sent")
        job.record.append("reported", outcome=end.outcome.value)

    def clean(self, job: LiveJob) -> None:
        """Removes inputs and outputs; log and record stay for some days."""
        state = job.state
        keeps_outputs = state.verdict is not None and state.verdict.code in ("output_refused", "internal")
        if state.token and not keeps_outputs:
            self._do.runs.remove_data(state.token)
        job.record.append("closed", at=self._do.clock.now())

    # -- what is shared

    def checker(self, job: LiveJob) -> Callable[[], None]:
        """A function that raises JobCancelled once the job is known to be cancelled."""

        def check() -> None:
            if not job.cancel_seen and self._do.is_revoked(job.task_id):
                job.cancel_seen = "in Girder"
            if job.cancel_seen or job.state.cancel:
                raise JobCancelled(job.cancel_seen or job.state.cancel)
            if self._do.stopping.is_set():
                raise WorkerStopping("The worker stops.")

        return check

    def flush(self, job: LiveJob) -> None:
        """Sends what Girder has not got of a running job: status, log, progress. Notes a cancel in the answer."""
        girder = job.state.girder
        if girder is None:
            return
        feed = self._feed(job)
        feed.read()
        if feed.has_doubt:
            try:
                feed.settle_doubt(self._do.updates.log(girder))
            except AccessRefused:
                self._mute(job)
                return
        update = feed.next_update()
        started = job.state.started is not None
        message = feed.message if started else job.waiting_message
        progress = feed.progress
        feed.progress = None
        try:
            answer = self._do.updates.update(
                girder,
                status=None if job.announced else JobStatus.RUNNING,
                log=update.text if update else None,
                overwrite=bool(update and update.overwrite),
                progress=progress,
                message=message or ("Running" if started and not job.started_shown else None),
            )
        except TransitionRefused:
            # Cancelled meanwhile, or already further than RUNNING.
            answer = self._do.updates.update(girder)
            if update is not None:
                feed.settle_doubt("")
        except AccessRefused:
            self._mute(job)
            return
        else:
            if update is not None:
                feed.update_arrived(update)
        job.announced = True
        job.started_shown = started
        self._notice(job, answer)

    def _cluster(self, job: LiveJob) -> Cluster:
        return self._do.direct if job.state.cluster == _DIRECT else self._do.cluster

    def _is_waited_for(self, job: LiveJob, task: inputs.StagedTask) -> bool:
        """Whether Girder keeps a form waiting for this run: it must not wait in the queue."""
        if self._decoded(job).hooks or not task.arguments:
            return False
        sif = self._do.images.find(task.image)
        if sif is None:
            return False
        description = read_descriptions(self._rules.jobs_root, sif.path.name).get(task.arguments[0], "")
        return is_datalist_request(task.arguments[1:], description)

    def _mute(self, job: LiveJob) -> None:
        """The token has expired: nothing more can be shown, but the job goes on and its outputs stay on disk."""
        job.last_flush = self._do.clock.monotonic() + _MUTE_SECONDS

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
        return self._feed(job)

    def _decoded(self, job: LiveJob) -> DecodedTask:
        if job.decoded is None:
            return decode(job.record.message(), self._do.celery_app)
        return job.decoded

    def _feed(self, job: LiveJob) -> LogFeed:
        output = Path(job.state.log_path) if job.state.log_path else None
        if job.feed is None:
            job.feed = LogFeed(job.record.path, output, limit_bytes=self._rules.log_limit_bytes)
        elif job.feed.output != output:
            job.feed.output = output
        return job.feed

    def _say(self, job: LiveJob, feed: LogFeed, line: str) -> None:
        feed.note(line)
        self.flush(job)

    def _girder_job(self, message: Mapping[str, Any]) -> GirderJob | None:
        headers = message["headers"]
        spec = headers.get("jobInfoSpec")
        if not isinstance(spec, dict) or not spec.get("url"):
            return None
        url = str(spec["url"])
        original = headers.get("girder_api_url") or headers.get("apiUrl")
        override = self._rules.staging.api_url
        if override and original and url.startswith(str(original).rstrip("/")):
            url = override.rstrip("/") + url[len(str(original).rstrip("/")) :]
        return GirderJob(url, str((spec.get("headers") or {}).get("Girder-Token", "")))

    def _enter(self, girder: GirderJob, status: JobStatus) -> JobAnswer:
        """Moves a Girder job to a state it may be in or beyond already; returns where it is."""
        try:
            return self._do.updates.update(girder, status=status)
        except TransitionRefused:
            return self._do.updates.update(girder)

    def _announce(self, job: LiveJob) -> None:
        if job.state.girder is not None and not job.announced:
            self._notice(job, self._enter(job.state.girder, JobStatus.RUNNING))
            job.announced = True

    def _ask_if_wanted(self, job: LiveJob) -> None:
        """Raises JobCancelled if the job was cancelled while nobody looked, as while the worker was down."""
        if job.state.girder is not None:
            try:
                self._notice(job, self._enter(job.state.girder, JobStatus.RUNNING))
            except AccessRefused as error:
                kept = self._do.runs.path(job.state.token) / "volume"
                msg = f"{error} The outputs are kept in {kept}."
                raise OutputRefused(msg) from error
            job.announced = True
        self.checker(job)()

    def _notice(self, job: LiveJob, answer: JobAnswer) -> None:
        if job.state.is_revived and answer.status == JobStatus.ERROR:
            return
        if answer.status in CANCELLED or answer.status in FINAL:
            job.cancel_seen = job.cancel_seen or "in Girder"

    def _sif_at_hand(self, task: inputs.StagedTask) -> Sif | None:
        return None if task.pull_policy == "always" else self._do.images.find(task.image)

    def _container(self, token: str, spec: ContainerSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is started on the node: Apptainer itself, or the site's script with Apptainer's arguments."""
        site = self._rules.submit_script
        if site is None:
            return (), container_argv(spec, apptainer=self._rules.apptainer)
        try:
            text = site.read_bytes()
        except OSError as error:
            msg = f"The site's submit script {site} cannot be read: {error.strerror}."
            raise NotSupported(msg) from error
        copy = self._do.runs.write(token, "site.slurm", text, mode=0o700)
        start = (str(copy),) if text.startswith(b"#!") else ("/bin/bash", str(copy))
        head = sbatch_head(text.decode("utf-8", errors="replace"))
        if (forbidden := forbidden_head_option(head)) is not None:
            msg = f"The site's submit script {site} sets `{forbidden}` in its #SBATCH head, which only the worker may."
            raise NotSupported(msg)
        return head, (*start, *container_arguments(spec))

    def _submitted(self, job: LiveJob, slurm_job_id: SlurmJobId) -> None:
        job.record.append("submitted", slurm_job_id=slurm_job_id, at=self._do.clock.now())
        job.decoded = None
        job.missing = 0
        job.final_since = 0.0
        job.waiting_message = "Slurm: submitted"
        self._feed(job).note(f"Submitted as Slurm job {slurm_job_id}.")

    def _cancel_unsure(self, job: LiveJob, slurm_job_ids: list[SlurmJobId]) -> None:
        state = job.state
        won = self._do.runs.claim(state.token, "cancelled")
        self._cluster(job).cancel(slurm_job_ids, () if slurm_job_ids else (state.token,))
        if won:
            job.record.decide(cancelled(state))
        elif slurm_job_ids:
            self._submitted(job, slurm_job_ids[-1])
        else:
            raise Later(1.0)

    def _verdict_with_slurm(self, job: LiveJob) -> Verdict | None:
        state = job.state
        detail: JobDetail | None = None
        if state.slurm_job_id:
            detail = self._cluster(job).describe(SlurmJobId(state.slurm_job_id))
        if detail is None or detail.token != state.token:
            # Ids are given out again: a job of another name is not ours.
            return self._verdict_of_absence(job)
        job.missing = 0
        if detail.state not in FINAL_STATES:
            if state.ended is not None and detail.state in _BEFORE_START:
                # Slurm would start it once more; its claim is taken, so that would do nothing.
                self._cluster(job).cancel([detail.slurm_job_id])
                return requeued(state, detail)
            if state.ended is not None or state.cluster == _DIRECT:
                job.looks += 1
                raise Later(min(10.0, 0.5 * 1.2**job.looks))
            job.final_since = 0.0
            return None
        if state.ended is None and not self._do.runs.claim(state.token, f"ended: {detail.state}"):
            # It did start; its word may be on the way.
            claimant = self._do.runs.claimant(state.token)
            if claimant and claimant != state.slurm_job_id:
                # Another submission of the same token runs; the one looked at was turned away by the claim.
                job.record.append("submitted", slurm_job_id=claimant, at=state.submitted_at)
                job.final_since = 0.0
                return None
            if not job.final_since:
                job.final_since = self._do.clock.monotonic()
            if self._do.clock.monotonic() - job.final_since < self._rules.event_grace_seconds * 2:
                raise Later(0.5)
        return verdict_of_slurm(state, detail)

    def _verdict_of_absence(self, job: LiveJob) -> Verdict | None:
        state = job.state
        if state.ended is not None:
            # Slurm forgot it already; the script's own word is all there is.
            return verdict_of_last_word(state)
        if self._do.runs.claimed_by(state.token) == "job" or state.started is not None:
            age = self._do.clock.now() - state.submitted_at
            if state.cluster == _DIRECT and age < self._do.direct.limit_seconds + 10:
                # It was started by the worker before this one, and may still run.
                raise Later(1.0)
            return vanished(state)
        if state.cancel:
            self._do.runs.claim(state.token, "cancelled")
            return cancelled(state)
        job.resubmits += 1
        if job.resubmits >= _MAX_SUBMITS:
            if not self._do.runs.claim(state.token, "given up"):
                return vanished(state)
            return never_started(state, job.resubmits)
        self._feed(job).note(f"Slurm lost job {state.slurm_job_id} before it started; it is submitted again.")
        job.missing = 0
        job.record.append("lost")
        return None

    def _await_whole_log(self, job: LiveJob) -> None:
        """Waits until the shared file system shows the log as long as the job left it."""
        feed = self._feed(job)
        ended = job.state.ended or {}
        expected = ended.get("log_bytes", 0)
        now = self._do.clock.monotonic()
        if feed.output is None or not isinstance(expected, int):
            return
        try:
            size = feed.output.stat().st_size
        except OSError:
            size = 0
        if size < expected:
            if not job.final_since:
                job.final_since = now
            if now - job.final_since < self._rules.event_grace_seconds:
                raise Later(0.25)

    def _report_to_girder(self, job: LiveJob, end: Verdict) -> Verdict:
        girder = job.state.girder
        assert girder is not None  # noqa: S101 - the caller looked
        feed = self._feed(job)
        if not (job.record.path / "told").exists():
            feed.read(final=True)
            feed.note(end.sentence)
            write_durably(job.record.path / "told", end.code, sync=False)
        if feed.has_doubt:
            feed.settle_doubt(self._do.updates.log(girder))
        status: JobStatus | None = None if job.state.is_revived else _STATUS[end.outcome]
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
            self._enter(girder, JobStatus.QUEUED)
        if status in (JobStatus.INACTIVE, JobStatus.QUEUED):
            self._enter(girder, JobStatus.RUNNING)
            return end
        if status in FINAL:
            raise JobDeleted(f"The Girder job {girder.job_id} has ended already with status {status}.")
        return end

    def _send_result(self, job: LiveJob, end: Verdict) -> None:
        message = job.record.message()
        try:
            decoded = self._decoded(job)
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


_STATUS = {
    Outcome.SUCCESS: JobStatus.SUCCESS,
    Outcome.ERROR: JobStatus.ERROR,
    Outcome.CANCELED: JobStatus.CANCELED,
}
_LAST_MESSAGE = {Outcome.SUCCESS: "Completed", Outcome.ERROR: "Failed", Outcome.CANCELED: "Cancelled"}
_ERROR_CODES = {
    "OutputRefused": "output_refused",
    "SubmitRejected": "submit_rejected",
    "InputUnavailable": "input_unavailable",
    "MessageUndecodable": "undecodable",
    "NotSupported": "not_supported",
    "ImageNotFound": "image_not_found",
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


def _mount_name(task_id: str) -> str:
    """The name of a job's volume in the container: the same for all attempts, and fit for a path."""
    return directory_name(task_id)
