"""Carries all jobs of a worker along: a fixed number of threads, whatever the number of jobs.

One thread looks at the spool of events every quarter of a second and hands steps to small pools; one thread asks
Slurm for the whole queue now and then. A job that waits costs a few kilobytes and no thread.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import queue
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.errors import ContainerError
from girder_worker_slurm.errors import (
    JobCancelled,
    JobDeleted,
    JobError,
    OwnershipLost,
    RecordDamaged,
    Unreachable,
)
from girder_worker_slurm.job.image_desk import ImageDesk
from girder_worker_slurm.job.live_job import LiveJob
from girder_worker_slurm.job.pools import Pool
from girder_worker_slurm.job.queue_watch import QueueRules, QueueWatch
from girder_worker_slurm.job.services import Later, Parked
from girder_worker_slurm.job.state import Outcome, Phase, Verdict
from girder_worker_slurm.job.update_turns import UpdateTurns
from girder_worker_slurm.job.verdict import UNWRITABLE
from girder_worker_slurm.records.cancel_request import cancel_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from girder_worker_slurm.cluster.interface import Snapshot
    from girder_worker_slurm.cluster.run_directory import JobEvent
    from girder_worker_slurm.job.run_job import JobStory, Step
    from girder_worker_slurm.job.services import Services
    from girder_worker_slurm.records.record import Record

logger = logging.getLogger(__name__)

_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
#: A registry that does not answer is asked again this often; then the job ends with that reason.
_IMAGE_TRIES = 5
_REQUESTS_PER_LOOK = 100


@dataclass(frozen=True)
class SupervisorRules:
    """How often it looks, and how much it carries."""

    token_prefix: str
    event_seconds: float = 0.25
    poll_seconds: float = 15.0
    max_submitted: int = 5000
    updates_per_second: float = 20.0
    log_interval_seconds: float = 1.0
    status_check_seconds: float = 600.0
    parallel_submits: int = 4
    parallel_girder: int = 6
    parallel_transfers: int = 4
    parallel_images: int = 2


class Supervisor:
    """Carries jobs from their record to their end."""

    def __init__(
        self,
        services: Services,
        story: JobStory,
        rules: SupervisorRules,
        *,
        on_ended: Callable[[Record], None],
    ) -> None:
        self._do = services
        self._story = story
        self._rules = rules
        self._on_ended = on_ended
        self._jobs: dict[str, LiveJob] = {}
        self._by_token: dict[str, LiveJob] = {}
        self._incoming: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[tuple[LiveJob, Step | None, BaseException | None]] = (
            queue.SimpleQueue()
        )
        self._wake = threading.Event()
        self._stop = services.stopping
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        #: Rendered jobs in the order in which they came; a dict for its order and its quick `in`.
        self._ready_to_submit: dict[str, None] = {}
        self._images = ImageDesk(
            services.images,
            services.stopping,
            begin=self._make_image,
            wake=self._wake.set,
        )
        self._updates = UpdateTurns(
            story,
            services.clock,
            per_second=rules.updates_per_second,
            interval_seconds=rules.log_interval_seconds,
            status_check_seconds=rules.status_check_seconds,
        )
        self._queue = QueueWatch(
            services,
            QueueRules(rules.token_prefix, rules.poll_seconds, story.event_grace_seconds),
            has_jobs_in_slurm=self._has_jobs_in_slurm,
            knows_token=self._is_for_us,
            later=self._later,
            in_pool=partial(self.run_in_pool, "submit"),
            wake=self._wake.set,
        )
        self._pools: dict[str, Pool] = {}
        self._threads: list[threading.Thread] = []
        self._unasked: list[str] = []

    # -- for those outside

    def start(self, records: Iterable[Record]) -> None:
        """Takes these records up where they stand and starts the threads."""
        for record in records:
            self._take(record)
        sizes = {
            "girder": self._rules.parallel_girder,
            "stage": self._rules.parallel_transfers,
            "image": self._rules.parallel_images,
            "submit": self._rules.parallel_submits,
            "deliver": self._rules.parallel_transfers,
        }
        self._pools = {name: Pool(name, size) for name, size in sizes.items()}
        for name, body in (("gw-supervisor", self._run), ("gw-queue", self._queue.run)):
            thread = threading.Thread(target=body, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Stops after the steps under way; what is not done goes on at the next start.

        Returns once no step runs any more, or after `timeout_seconds`: transfers end at their next piece.
        """
        self._stop.set()
        self._wake.set()
        self._queue.stop()
        until = self._do.clock.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(timeout_seconds)
        while self._do.clock.monotonic() < until and any(job.is_busy for job in self._jobs.values()):
            with contextlib.suppress(queue.Empty):
                job, _, _ = self._finished.get(timeout=0.5)
                job.is_busy = False

    def accept(self, record: Record) -> None:
        """Takes up a new record; callable from any thread."""
        self._incoming.put(record)
        self._wake.set()

    @property
    def live_count(self) -> int:
        """Jobs that have not ended, those included that were accepted a moment ago."""
        return len(self._jobs) + self._incoming.qsize()

    def sifs_in_use(self) -> set[str]:
        """The SIFs from which jobs run, or will run once Slurm starts them; callable from any thread."""
        return {
            job.state.sif
            for job in list(self._jobs.values())
            if job.state.sif and job.state.phase < Phase.DECIDED
        }

    def run_in_pool(self, pool: str, work: Callable[[], None]) -> None:
        """Runs something that belongs to no job in one of the pools."""
        self._pools[pool].submit(_logged, work)

    # -- the supervising thread

    def _run(self) -> None:
        next_look = 0.0
        while not self._stop.is_set():
            # A turn for every step that ends, but a look at all jobs and the spool only now and then.
            now = self._do.clock.monotonic()
            looks = now >= next_look
            if looks:
                next_look = now + self._rules.event_seconds
            try:
                self._turn(looks=looks)
            except Exception:
                # One bad turn must not end the supervision of thousands of jobs.
                logger.exception("The supervisor met an unexpected error; it goes on")
                self._do.clock.sleep(1.0)
            self._wake.wait(self._rules.event_seconds)
            self._wake.clear()

    def _turn(self, *, looks: bool = True) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._incoming.get_nowait())
        with contextlib.suppress(queue.Empty):
            while True:
                self._after_step(*self._finished.get_nowait())
        for served, problem in self._images.served():
            self._after_step(served, _IMAGE_STEP, problem)
        for snapshot in self._queue.snapshots():
            self._compare_with(snapshot)
        if looks:
            self._read_events()
            self._look_for_revoked()
            self._look_for_requests()
        now = self._do.clock.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, task_id = heapq.heappop(self._due)
            job = self._jobs.get(task_id)
            if job is not None and job.due_at <= now:
                self._safely(job, partial(self._advance, job))
        self._fill_slurm()
        if looks:
            self._send_updates(now)

    def _safely(self, job: LiveJob, action: Callable[[], None]) -> None:
        """Does something for one job in the supervising thread; its failure is that job's alone."""
        try:
            action()
        except OwnershipLost as error:
            logger.warning("%s", error)
            self._forget(job)
        except OSError as error:
            logger.error("Job %s: %s; trying again", job.task_id, error)  # noqa: TRY400 - no bug, a full disk
            self._later(job, 10.0)

    def _take(self, record: Record) -> None:
        if record.task_id in self._jobs:
            return
        job = LiveJob(record)
        self._jobs[record.task_id] = job
        if record.state.token:
            self._by_token[record.state.token] = job
            for event in (
                self._do.runs.kept_events(record.state.token) if record.state.phase < Phase.DECIDED else ()
            ):
                self._take_event(job, event)
        job.next_status_check = self._do.clock.monotonic()
        self._later(job, 0.0)

    def _later(self, job: LiveJob, seconds: float) -> None:
        job.due_at = self._do.clock.monotonic() + seconds
        heapq.heappush(self._due, (job.due_at, next(self._order), job.task_id))
        if seconds <= 0:
            self._wake.set()

    def _advance(self, job: LiveJob) -> None:
        """Gives the job its next step to a pool, or lets it wait."""
        if job.is_busy or job.is_parked:
            # Its moment has come while an update or a step is under way: made up for after that.
            job.has_missed_turn = True
            return
        job.has_missed_turn = False
        while job.inbox:
            self._record_event(job, job.inbox[0])
            del job.inbox[0]
        if job.state.is_final:
            self._forget(job)
            try:
                self._on_ended(job.record)
            except OSError as error:
                logger.warning("Job %s: its record stays among the live ones for now: %s", job.task_id, error)
            return
        step = self._story.next_step(job)
        if step is None:
            return
        if step.name == "submit" and not job.cancel_seen and not job.state.cluster:
            self._ready_to_submit.setdefault(job.task_id)
            return
        self._begin(job, step)

    def _begin(self, job: LiveJob, step: Step) -> None:
        job.is_busy = True
        self._pools[step.pool].submit(self._step, job, step)

    def _step(self, job: LiveJob, step: Step) -> None:
        """In a pool thread: one step, and what came of it."""
        error: BaseException | None = None
        try:
            if not self._stop.is_set():
                self._story.run(step, job)
        except BaseException as caught:  # noqa: BLE001 - handed to the supervising thread, which decides
            error = caught
        self._finished.put((job, step, error))
        self._wake.set()

    def _after_step(self, job: LiveJob, step: Step | None, error: BaseException | None) -> None:
        job.is_busy = False
        if job.task_id not in self._jobs:
            return
        token = job.state.token
        if token and token not in self._by_token:
            for old in [known for known, other in self._by_token.items() if other is job]:
                del self._by_token[old]
            self._by_token[token] = job
        if error is None:
            job.failures = 0
            if step is not None:
                _diary(job, step)
            if step is not None or job.inbox or job.cancel_seen or job.has_missed_turn:
                self._later(job, 0.0)
            return
        self._safely(job, partial(self._after_error, job, step, error))

    def _after_error(self, job: LiveJob, step: Step | None, error: BaseException) -> None:
        name = step.name if step else "update"
        if isinstance(error, Later):
            self._later(job, error.seconds)
        elif isinstance(error, Parked):
            self._images.wait(job, error.image, error.policy)
        elif isinstance(error, JobCancelled):
            if not job.state.cancel:
                job.record.append("cancel", why=str(error) or "in Girder")
            self._later(job, 0.0)
        elif isinstance(error, JobDeleted):
            logger.info("Job %s: %s", job.task_id, error)
            self._story.notice_deleted(job)
            self._later(job, 0.0)
        elif isinstance(error, OwnershipLost):
            logger.warning("%s", error)
            self._forget(job)
        elif isinstance(error, Unreachable) or (
            isinstance(error, ContainerError) and error.retryable and job.failures < _IMAGE_TRIES
        ):
            self._retry(job, name, error)
        elif isinstance(error, (JobError, ContainerError)):
            self._story.end_with(job, error)
            self._later(job, 0.0)
        elif isinstance(error, (OSError, RecordDamaged)):
            logger.error("Job %s: step %s failed (%s); trying again", job.task_id, name, error)
            self._retry(job, name, error)
        else:
            self._after_bug(job, name, error)

    def _after_bug(self, job: LiveJob, name: str, error: BaseException) -> None:
        logger.error("Job %s: unexpected error in step %s", job.task_id, name, exc_info=error)
        gives_up = name in ("deliver", "report") and job.failures >= len(_BACKOFF_SECONDS)
        if gives_up and name == "report":
            # Nobody can be told; a record that never ends would help nobody either.
            self._story.end_unreported(job)
            self._later(job, 0.0)
            return
        if (job.state.phase >= Phase.SUBMITTING and not gives_up) or step_is_update(name):
            # The Slurm job must not be lost for a mistake of ours.
            self._retry(job, name, error)
            return
        sentence = f"The worker met an unexpected error in step {name}: {type(error).__name__}: {error}. Its log has the details."
        job.record.decide(Verdict(Outcome.ERROR, "internal", sentence))
        self._later(job, 0.0)

    def _retry(self, job: LiveJob, name: str, error: BaseException) -> None:
        seconds = _BACKOFF_SECONDS[min(job.failures, len(_BACKOFF_SECONDS) - 1)]
        job.failures += 1
        log = logger.info if job.failures < len(_BACKOFF_SECONDS) else logger.warning
        log("Job %s: step %s is tried again in %.0f s: %s", job.task_id, name, seconds, error)
        self._later(job, seconds)

    def _forget(self, job: LiveJob) -> None:
        self._jobs.pop(job.task_id, None)
        self._by_token.pop(job.state.token, None)

    def _make_image(self, work: Callable[..., None], *arguments: Any) -> None:
        self._pools["image"].submit(work, *arguments)

    # -- places in Slurm

    def _fill_slurm(self) -> None:
        if not self._ready_to_submit:
            return
        taken = sum(
            1
            for job in self._jobs.values()
            if job.state.is_in_slurm or (job.is_busy and job.state.phase is Phase.RENDERED)
        )
        while self._ready_to_submit and taken < self._rules.max_submitted:
            task_id = next(iter(self._ready_to_submit))
            del self._ready_to_submit[task_id]
            job = self._jobs.get(task_id)
            if job is None or job.is_busy or job.state.phase is not Phase.RENDERED:
                continue
            step = self._story.next_step(job)
            if step is not None:
                self._begin(job, step)
                taken += 1

    # -- the queue

    def _has_jobs_in_slurm(self) -> bool:
        return any(job.state.is_in_slurm and not job.state.cluster for job in list(self._jobs.values()))

    def _compare_with(self, snapshot: Snapshot) -> None:
        rows = snapshot.by_token()
        for job in list(self._jobs.values()):
            if job.state.phase is Phase.SUBMITTED and not job.is_busy and not job.state.cluster:
                found = rows.get(job.state.token, [])
                self._safely(job, partial(self._queue.compare, job, found, snapshot))
        self._queue.end_orphans(rows)

    # -- events of job scripts

    def _read_events(self) -> None:
        try:
            events = self._do.runs.events(self._is_for_us)
        except OSError as error:
            logger.warning("The spool of events cannot be read: %s", error)
            return
        for event in events:
            with contextlib.suppress(OSError):  # it stays in the spool and is read again
                self._do.runs.keep(event)
                job = self._by_token.get(event.token)
                if job is not None:
                    self._take_event(job, event)

    def _is_for_us(self, token: str) -> bool:
        """Whether events of this token are ours to read: other workers may share the spool."""
        return token in self._by_token

    def _take_event(self, job: LiveJob, event: JobEvent) -> None:
        if event.nonce != job.state.nonce:
            logger.warning(
                "Job %s: an event without the right nonce is ignored (%s)", job.task_id, event.path.name
            )
            return
        job.inbox.append(event)
        self._later(job, 0.0)

    def _record_event(self, job: LiveJob, event: JobEvent) -> None:
        state = job.state
        if state.phase >= Phase.DECIDED or event.token != state.token:
            return
        if state.slurm_job_id and event.slurm_job_id not in (
            state.slurm_job_id,
            self._do.runs.claimant(state.token),
        ):
            logger.warning(
                "Job %s: an event of Slurm job %s, which does not run it, is ignored",
                job.task_id,
                event.slurm_job_id,
            )
            return
        fields = {key: value for key, value in event.fields.items() if key not in ("nonce", "kind")}
        if event.kind == "started" and state.started is None:
            job.record.append("started", **fields)
            job.next_status_check = 0.0
        elif event.kind == "ended" and state.ended is None:
            job.record.append("ended", **fields)
        elif event.kind == "refused" and event.fields.get("why") == UNWRITABLE and state.ended is None:
            job.record.append("ended", **{**fields, "exit_code": 73, "cause": UNWRITABLE})

    # -- Girder

    def _look_for_revoked(self) -> None:
        revoked = [
            job for job in self._jobs.values() if not job.cancel_seen and self._do.is_revoked(job.task_id)
        ]
        for job in revoked:
            self._safely(job, partial(self._see_cancel, job, "in Girder"))

    def _look_for_requests(self) -> None:
        """Honours what `girder-slurm cancel` left, looking at some of the jobs each time."""
        if not self._unasked:
            self._unasked = list(self._jobs)
        some, self._unasked = self._unasked[:_REQUESTS_PER_LOOK], self._unasked[_REQUESTS_PER_LOOK:]
        for task_id in some:
            job = self._jobs.get(task_id)
            why = cancel_request(job.record.path) if job is not None and not job.cancel_seen else ""
            if job is not None and why:
                self._safely(job, partial(self._see_cancel, job, why))

    def _see_cancel(self, job: LiveJob, why: str) -> None:
        job.cancel_seen = why
        if job.is_parked:
            self._images.leave(job)
        if not job.is_busy and job.state.phase < Phase.DECIDED:
            job.record.append("cancel", why=job.cancel_seen)
        self._later(job, 0.0)

    def _send_updates(self, now: float) -> None:
        """Sends log, progress and the news of the queue, within the budget, the longest waiting first."""
        for job in self._updates.choose(self._jobs.values(), now):
            job.is_busy = True
            self._pools["girder"].submit(self._flush, job)
        self._images.spread_news()
        for job in self._updates.choose_waiting(self._jobs.values()):
            # Not in the job's name: it goes on with its image whether or not Girder has been told.
            self.run_in_pool("girder", partial(self._story.show_waiting, job.state, job.image_phase))

    def _flush(self, job: LiveJob) -> None:
        error: BaseException | None = None
        try:
            self._story.flush(job)
        except BaseException as caught:  # noqa: BLE001 - handed to the supervising thread
            error = caught
        self._finished.put((job, None, error))
        self._wake.set()


def step_is_update(name: str) -> bool:
    """Whether this is the sending of log and progress, which never ends a job."""
    return name == "update"


class _ImageStep:
    """Stands for the making of an image in `_after_step`."""

    name = "image"
    pool = "image"


_IMAGE_STEP: Any = _ImageStep()


def _diary(job: LiveJob, step: Step) -> None:
    """One line a move, by which an administrator can follow a job through the worker's log."""
    state = job.state
    ids = [f"task {job.task_id}"]
    if state.girder is not None:
        ids.append(f"Girder job {state.girder.job_id}")
    if state.slurm_job_id:
        ids.append(f"Slurm job {state.slurm_job_id}")
    what = state.phase.name.lower()
    if state.verdict is not None and step.name in ("judge", "cancel", "ingest", "resolve", "report"):
        what += f" ({state.verdict.outcome.value}: {state.verdict.code})"
    logger.info("%s: %s after step %s", ", ".join(ids), what, step.name)


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Unreachable as error:
        logger.warning("%s", error)
    except Exception:
        logger.exception("Unexpected error")
