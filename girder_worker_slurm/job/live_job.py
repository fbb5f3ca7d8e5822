"""One job in the memory of a running worker: its record, and what need not survive a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.cluster.run_directory import JobEvent
    from girder_worker_slurm.girder.log_feed import LogFeed
    from girder_worker_slurm.job.state import JobState
    from girder_worker_slurm.records.record import Record


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
        "failures",
        "feed",
        "final_since",
        "has_missed_turn",
        "has_news",
        "image_phase",
        "image_phase_shown",
        "inbox",
        "is_busy",
        "is_parked",
        "last_flush",
        "looks",
        "missing",
        "next_log_look",
        "next_status_check",
        "record",
        "resubmits",
        "sif",
        "started_shown",
        "waiting_message",
    )

    def __init__(self, record: Record) -> None:
        self.record = record
        self.is_busy = False
        #: Waiting for an image or for a free place in Slurm; the one who frees it wakes the job.
        self.is_parked = False
        #: Not before this monotonic time.
        self.due_at = 0.0
        self.failures = 0
        #: Why the job was cancelled in Girder, as soon as anyone noticed; recorded at the next step.
        self.cancel_seen = ""
        self.cancel_sent_at = 0.0
        self.cancel_begun_at = 0.0
        #: Events that came while the job was busy.
        self.inbox: list[JobEvent] = []
        self.feed: LogFeed | None = None
        #: The message as objects, kept only until the job is in Slurm.
        self.decoded: DecodedTask | None = None
        self.sif: Any = None
        self.announced = False
        self.started_shown = False
        self.waiting_message = ""
        self.last_flush = 0.0
        self.next_status_check = 0.0
        self.next_log_look = 0.0
        #: Its moment came while it was busy.
        self.has_missed_turn = False
        #: How far the image is that it waits for, and what of that Girder has got.
        self.image_phase = ""
        self.image_phase_shown = ""
        #: Output was seen that Girder has not got; it waits for its turn.
        self.has_news = False
        #: Good listings in a row that did not have the job.
        self.missing = 0
        #: Good listings in a row in which it waits again although it had started.
        self.back_in_queue = 0
        #: How often Slurm was asked about an end that it had not noticed yet.
        self.looks = 0
        #: Monotonic time since when Slurm says the job has ended; 0 while it does not.
        self.final_since = 0.0
        self.resubmits = 0

    @property
    def state(self) -> JobState:
        """The job's recorded state."""
        return self.record.state

    @property
    def task_id(self) -> str:
        """The Celery task id, which names the job everywhere in the worker."""
        return self.record.task_id
