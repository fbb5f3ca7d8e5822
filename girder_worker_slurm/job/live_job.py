"""One job in the memory of a running worker: its record, and what need not survive a restart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.job.state import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.cluster.interface import JobDetail
    from girder_worker_slurm.cluster.run_files import JobEvent
    from girder_worker_slurm.girder.log_feed import LogFeed
    from girder_worker_slurm.job.state import JobState, Verdict
    from girder_worker_slurm.records.record import Record


def _nobody_waits() -> bool:
    return False


class LiveJob:
    """A job the supervisor carries. While `is_busy`, one pool thread owns it; else the supervisor's thread."""

    __slots__ = (
        "announced",
        "back_in_queue",
        "cancel_begun_at",
        "cancel_seen",
        "cancel_sent_at",
        "decoded",
        "due_at",
        "expected_user",
        "failures",
        "feed",
        "final_since",
        "first_log_look",
        "had_turn",
        "has_missed_turn",
        "has_news",
        "has_words",
        "heard_token",
        "image_phase",
        "image_phase_shown",
        "inbox",
        "is_asked_for_cancel",
        "is_busy",
        "is_parked",
        "last_flush",
        "last_sign",
        "looks",
        "missing",
        "next_heartbeat",
        "next_log_look",
        "next_log_opening",
        "others_wait",
        "record",
        "resubmits",
        "seen_end",
        "sif",
        "silence_seconds",
        "silent_since",
        "started_shown",
        "user_is_asked",
        "waited_for_until",
        "waiting_message",
        "waits_in_vain",
        "waits_since",
    )

    def __init__(self, record: Record) -> None:
        self.record = record
        self.is_busy = False
        #: Waiting for an image or for a free place in Slurm; the one who frees it wakes the job.
        self.is_parked = False
        #: Not before this monotonic time.
        self.due_at = 0.0
        self.failures = 0
        #: Monotonic time since when Girder has not answered for it; 0 while it does.
        self.silent_since = 0.0
        #: How long Girder did not answer, until its log says so.
        self.silence_seconds = 0.0
        #: Whether others wait for the thread that does its step.
        self.others_wait: Callable[[], bool] = _nobody_waits
        #: Why the job was cancelled in Girder, as soon as anyone noticed; recorded at the next step.
        self.cancel_seen = ""
        #: Whether a wish of the command line was looked for since this worker has the job.
        self.is_asked_for_cancel = False
        self.cancel_sent_at = 0.0
        self.cancel_begun_at = 0.0
        #: The attempt whose events are listened for.
        self.heard_token = ""
        #: Whose it seems to be until Girder is asked; only for its place among those that wait to be asked for.
        self.expected_user = ""
        #: Girder was asked for its user by this worker, whose settings decide how much of them has to be known.
        self.user_is_asked = False
        #: Events that came while the job was busy.
        self.inbox: list[JobEvent] = []
        self.feed: LogFeed | None = None
        #: The message as objects, kept only until the job is in Slurm.
        self.decoded: DecodedTask | None = None
        self.sif: Any = None
        self.announced = False
        self.started_shown = False
        self.waiting_message = ""
        self.last_flush = -math.inf
        #: When its log is looked at first; 0 until its start has been noticed.
        self.first_log_look = 0.0
        self.next_log_look = 0.0
        self.next_log_opening = 0.0
        #: When Girder has to hear again that somebody works on the job, whether or not there is anything to say.
        self.next_heartbeat = math.inf
        #: Its moment came while it was busy.
        self.has_missed_turn = False
        #: Its turn to be submitted has come, but Slurm has not taken it yet.
        self.had_turn = False
        #: Monotonic time since when it waits for its turn to be submitted; 0 while it does not.
        self.waits_since = 0.0
        #: What it waits for, its image or a place in Slurm, and what of that Girder has got.
        self.image_phase = ""
        self.image_phase_shown = ""
        #: Output was seen that Girder has not got; it waits for its turn.
        self.has_news = False
        #: It has started, or waits in Slurm for another reason than Girder shows.
        self.has_words = False
        #: Good listings in a row that did not have the job.
        self.missing = 0
        #: The length of its log and when that was new, since Slurm does not know it any more.
        self.last_sign: tuple[int, float] | None = None
        #: Until when its own word is waited for, since Slurm said that it ended.
        self.waited_for_until = 0.0
        #: What Slurm said then; it counts as long as nothing else is seen.
        self.seen_end: JobDetail | None = None
        #: Good listings in a row in which it waits again although it had started.
        self.back_in_queue = 0
        #: How often Slurm was asked about an end that it had not noticed yet.
        self.looks = 0
        #: Monotonic time since when Slurm says the job has ended; 0 while it does not.
        self.final_since = 0.0
        self.resubmits = 0
        #: The end of a job that Slurm will never start (again), as the queue shows it; recorded at the next step.
        self.waits_in_vain: Verdict | None = None

    def begin_anew(self) -> None:
        """Forgets what was seen of an attempt that is over."""
        self.waits_in_vain = None
        self.sif = self.decoded = None
        self.started_shown = False
        self.first_log_look = 0.0
        self.waiting_message = ""
        self.cancel_sent_at = self.cancel_begun_at = self.final_since = 0.0
        self.missing = self.back_in_queue = self.looks = self.resubmits = 0
        self.last_sign = self.seen_end = None

    @property
    def state(self) -> JobState:
        """The job's recorded state."""
        return self.record.state

    @property
    def user(self) -> str:
        """Whose job it is, for the fairness between users; all whom Girder does not name are one."""
        return self.record.state.user.id if self.record.state.user else ""

    @property
    def line(self) -> str:
        """In whose line the job's steps stand. Jobs whose user is not known yet do not stand before those of him that are."""
        if self.state.phase is Phase.ACCEPTED:
            return f"new, {self.expected_user}"
        return self.user

    @property
    def task_id(self) -> str:
        """The Celery task id, which names the job everywhere in the worker."""
        return self.record.task_id
