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
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import OwnershipLost, RecordDamaged, Unreachable
from girder_worker_slurm.girder.users import expected_user
from girder_worker_slurm.job.cancel_watch import CancelWatch
from girder_worker_slurm.job.girder_side import FIRST_HEARTBEAT_SECONDS
from girder_worker_slurm.job.image_desk import ImageDesk
from girder_worker_slurm.job.job_events import JobEvents
from girder_worker_slurm.job.live_job import LiveJob
from girder_worker_slurm.job.pools import Pool
from girder_worker_slurm.job.queue_watch import QueueRules, QueueWatch
from girder_worker_slurm.job.run_job import CANCEL, Step
from girder_worker_slurm.job.state import Phase
from girder_worker_slurm.job.step_errors import UPDATE, StepErrors
from girder_worker_slurm.job.submit_turns import SubmitRules, SubmitTurns
from girder_worker_slurm.job.update_turns import UpdateTurns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from girder_worker_slurm.cluster.interface import Snapshot
    from girder_worker_slurm.job.run_job import JobStory
    from girder_worker_slurm.job.services import Services
    from girder_worker_slurm.job.state import JobState
    from girder_worker_slurm.records.record import Record

logger = logging.getLogger(__name__)

#: Of so many jobs each claim is taken before the order goes to Slurm.
_MOST_CANCELS = 500
#: So many updates for each thread that sends them may be under way.
_UPDATES_PER_THREAD = 4


@dataclass(frozen=True)
class SupervisorRules:
    """How often it looks, and how much it carries."""

    token_prefix: str
    event_seconds: float = 0.25
    poll_seconds: float = 15.0
    submits: SubmitRules = field(default_factory=SubmitRules)
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
        self._incoming: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[tuple[LiveJob, Step | None, BaseException | None]] = (
            queue.SimpleQueue()
        )
        self._wake = threading.Event()
        self._stop = services.stopping
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._submits = SubmitTurns(services.clock, rules.submits)
        self._events = JobEvents(services, later=self._later)
        self._images = ImageDesk(
            services.images,
            services.stopping,
            begin=self._make_image,
            wake=self._wake.set,
        )
        self._cancels = CancelWatch(
            services, self._jobs, self._images, safely=self._safely, later=self._later
        )
        self._errors = StepErrors(
            story,
            self._images,
            later=self._later,
            forget=self._forget,
            refused=self._submits.refused,
            clock=services.clock,
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
            knows_token=self._events.knows,
            later=self._later,
            in_pool=partial(self.run_in_pool, "submit"),
            wake=self._wake.set,
        )
        #: Updates that wait for a thread, or for Girder's answer; and those of waiting jobs that are done.
        self._updates_under_way = 0
        self._shown: queue.SimpleQueue[None] = queue.SimpleQueue()
        #: Unix user → jobs in Slurm that are to be cancelled; and the users for whom an order is under way.
        self._to_cancel: dict[str, list[LiveJob]] = {}
        self._cancelling: set[str] = set()
        self._pools: dict[str, Pool] = {}
        self._threads: list[threading.Thread] = []

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
            # Of a job with 100,000 files this takes as long as their file system wants.
            "clean": 2,
            # Its work waits for minutes for a Girder that is away; jobs must not.
            "unhandled": 2,
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
        for job in itertools.chain.from_iterable(self._to_cancel.values()):
            job.is_busy = False  # its order has not been begun
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

    def run_in_pool(self, pool: str, work: Callable[[], object]) -> None:
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
                self._shown.get_nowait()
                self._updates_under_way -= 1
        with contextlib.suppress(queue.Empty):
            while True:
                self._after_step(*self._finished.get_nowait())
        for served, problem in self._images.served():
            self._after_step(served, _IMAGE_STEP, problem)
        for snapshot in self._queue.snapshots():
            self._compare_with(snapshot)
        if looks:
            self._events.read()
            self._cancels.look()
        now = self._do.clock.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, task_id = heapq.heappop(self._due)
            job = self._jobs.get(task_id)
            if job is not None and job.due_at <= now:
                self._safely(job, partial(self._advance, job))
        self._send_cancels()
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
        except Exception:
            # It must neither hold up all others nor be forgotten itself.
            logger.exception("Job %s: unexpected error; trying again", job.task_id)
            self._later(job, 10.0)

    def _take(self, record: Record) -> None:
        if record.task_id in self._jobs:
            return
        job = LiveJob(record)
        if record.state.phase is Phase.ACCEPTED:
            with contextlib.suppress(RecordDamaged):  # the step that needs the message will say so
                job.expected_user = expected_user(record.message())
        self._jobs[record.task_id] = job
        self._events.take_up(job)
        self._submits.settle(job)
        job.next_heartbeat = self._do.clock.monotonic() + FIRST_HEARTBEAT_SECONDS
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
        self._events.record(job)
        self._submits.settle(job)
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
        if step.name == "cancel" and job.state.is_in_slurm and not job.state.cluster:
            job.is_busy = True
            self._submits.stop_waiting(job)
            self._to_cancel.setdefault(job.state.unix_user, []).append(job)
            return
        if step.name == "submit" and not job.cancel_seen and not job.state.cluster:
            self._submits.wait(job)
            return
        self._begin(job, step)

    def _begin(self, job: LiveJob, step: Step) -> None:
        job.is_busy = True
        if step.name != "submit":
            self._submits.stop_waiting(job)
        pool = self._pools[step.pool]
        if step.name == "deliver":
            job.others_wait = pool.is_waited_for
        pool.submit(self._step, job, step, user=job.line)

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
        if step is None:
            self._updates_under_way -= 1
        if job.task_id not in self._jobs:
            return
        self._events.listen(job)
        self._submits.settle(job)
        if error is None:
            job.failures = 0
            self._errors.went_well(job, step.name if step else UPDATE)
            if step is not None:
                _diary(job, step)
            if step is not None or job.inbox or job.cancel_seen or job.has_missed_turn:
                self._later(job, 0.0)
            return
        self._safely(job, partial(self._errors.settle, job, step.name if step else UPDATE, error))

    def _forget(self, job: LiveJob) -> None:
        self._jobs.pop(job.task_id, None)
        self._events.forget(job)
        self._submits.forget(job)
        self._errors.forget(job)

    def _make_image(self, work: Callable[..., None], *arguments: Any, user: str) -> None:
        self._pools["image"].submit(work, *arguments, user=user)

    def _send_cancels(self) -> None:
        """Has the jobs cancelled that are to be: for each Unix user one order at a time, and what comes meanwhile with the next.

        Thousands of cancels at once would otherwise be as many questions to Slurm for its whole queue.
        """
        for user in [user for user in self._to_cancel if user not in self._cancelling]:
            jobs = self._to_cancel.pop(user)
            if later := jobs[_MOST_CANCELS:]:
                self._to_cancel[user] = later
            self._cancelling.add(user)
            self._pools["submit"].submit(self._cancel, user, jobs[:_MOST_CANCELS], user="cancels")

    def _cancel(self, user: str, jobs: Sequence[LiveJob]) -> None:
        """In a pool thread: one order for many jobs, and what came of it for each."""
        outcome: Mapping[LiveJob, BaseException] = {}
        try:
            if not self._stop.is_set():
                outcome = self._story.cancel_in_slurm(jobs)
        except BaseException as caught:  # noqa: BLE001 - handed to the supervising thread, which decides
            outcome = dict.fromkeys(jobs, caught)
        self._cancelling.discard(user)
        for job in jobs:
            self._finished.put((job, CANCEL, outcome.get(job)))
        self._wake.set()

    def _fill_slurm(self) -> None:
        for job in self._submits.next_jobs():
            step = self._story.next_step(job)
            if step is not None:
                self._begin(job, step)

    # -- the queue

    def _has_jobs_in_slurm(self) -> bool:
        return any(job.state.is_in_slurm and not job.state.cluster for job in list(self._jobs.values()))

    def _compare_with(self, snapshot: Snapshot) -> None:
        rows = snapshot.by_token()
        for job in list(self._jobs.values()):
            if job.state.phase is Phase.SUBMITTED and not job.is_busy and not job.state.cluster:
                # Names of jobs are no secret: another user may have given one the same.
                found = [row for row in rows.get(job.state.token, ()) if row.unix_user == job.state.unix_user]
                self._safely(job, partial(self._queue.compare, job, found, snapshot))
        self._queue.end_orphans(rows)

    # -- Girder

    def _send_updates(self, now: float) -> None:
        """Sends log, progress and the news of the queue, within the budget, the longest waiting first."""
        most = max(_UPDATES_PER_THREAD * self._rules.parallel_girder, self._rules.updates_per_second)
        for job in self._updates.choose(self._jobs.values(), now, at_most=most - self._updates_under_way):
            job.is_busy = True
            self._updates_under_way += 1
            self._pools["girder"].submit(self._flush, job, user=job.user)
        self._images.spread_news()
        for job in self._updates.choose_waiting(self._jobs.values(), now, self._submits.why):
            # Not in the job's name: it goes on with its image whether or not Girder has been told.
            self._updates_under_way += 1
            self.run_in_pool("girder", partial(self._show_waiting, job.state, job.image_phase))

    def _show_waiting(self, state: JobState, phase: str) -> None:
        try:
            self._story.show_waiting(state, phase)
        finally:
            self._shown.put(None)

    def _flush(self, job: LiveJob) -> None:
        error: BaseException | None = None
        try:
            self._story.flush(job)
        except BaseException as caught:  # noqa: BLE001 - handed to the supervising thread
            error = caught
        self._finished.put((job, None, error))
        self._wake.set()


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


def _logged(work: Callable[[], object]) -> None:
    try:
        work()
    except Unreachable as error:
        logger.warning("%s", error)
    except Exception:
        logger.exception("Unexpected error")
