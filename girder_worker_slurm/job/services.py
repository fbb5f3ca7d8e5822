"""What the steps of a job share: what they act through, the settings they need, and how they wait."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from girder_worker_slurm.celery_worker.admitted_objects import STOCK_CLASSES
from girder_worker_slurm.celery_worker.message import DecodedTask, decode
from girder_worker_slurm.cluster.run_as import own_name, uid_of
from girder_worker_slurm.errors import JobCancelled, WorkerStopping
from girder_worker_slurm.girder.new_files import ArchiveRules
from girder_worker_slurm.job.retries import RetryRules
from girder_worker_slurm.options.hooks import JobHooks
from girder_worker_slurm.users.mapping import UserMapping
from girder_worker_slurm.users.unix_users import UnixUserRules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.run.image_rules import ImageRule
    from girder_worker_singularity.sif.store import SifStore
    from girder_worker_slurm.cluster.direct_cluster import DirectCluster
    from girder_worker_slurm.cluster.interface import Cluster
    from girder_worker_slurm.cluster.run_files import RunFiles
    from girder_worker_slurm.girder.inputs import StagingRules
    from girder_worker_slurm.girder.job_updates import JobUpdates
    from girder_worker_slurm.girder.users import GirderUsers
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.state import EarlierAttempt, GirderJob, GirderUser, JobState
    from girder_worker_slurm.options.binds import SiteBind
    from girder_worker_slurm.options.partitions import Partition
    from girder_worker_slurm.options.requests import OptionRules

#: The cluster of jobs that run on the worker's own host.
DIRECT = "direct"


class ResultSender(Protocol):
    """Tells Celery callers how a task ended."""

    def success(self, task: str, task_id: str, decoded: DecodedTask, value: Any) -> None:
        """Sends links, chain and result. Raises Unreachable when the broker does not answer."""

    def failure(self, task: str, task_id: str, decoded: DecodedTask, sentence: str) -> None:
        """Sends errbacks and the failure."""

    def revoked(self, task: str, task_id: str, decoded: DecodedTask, sentence: str) -> None:
        """Sends the cancellation."""


@dataclass(frozen=True)
class ContainerRules:
    """How this site's containers are run."""

    #: Pattern of images → what differs for them.
    images: Mapping[str, ImageRule] = field(default_factory=dict)
    overlay_mib: int = 600
    gpu_kind: Literal["nv", "rocm", "none"] = "nv"
    #: sbatch options of jobs that want GPUs.
    gpu_options: Mapping[str, str] = field(default_factory=dict)
    #: Paths of the nodes that containers get to see.
    binds: tuple[SiteBind, ...] = ()
    #: Whether Docker's limits become sbatch options.
    honours_docker_resources: bool = True


@dataclass(frozen=True)
class StoryRules:
    """The settings that the steps need."""

    jobs_root: Path
    token_prefix: str
    apptainer: str
    slurm_options: tuple[tuple[str, str], ...]
    """sbatch options of every job."""
    staging: StagingRules
    containers: ContainerRules = ContainerRules()
    #: Whose new files are kept besides the outputs.
    archives: ArchiveRules = field(default_factory=ArchiveRules)
    users: UserMapping = field(default_factory=UserMapping)
    unix_users: UnixUserRules = field(default_factory=UnixUserRules)
    hooks: JobHooks = field(default_factory=JobHooks)
    submit_script: Path | None = None
    #: The site's template of the job script.
    script_template: Path | None = None
    logs_dir: Path | None = None
    log_limit_bytes: int = 3_000_000
    event_grace_seconds: float = 5.0
    retries: RetryRules = field(default_factory=RetryRules)
    #: Between two looks for a submission whose answer was lost.
    resolve_seconds: float = 5.0

    def options_of(self, user: GirderUser | None) -> OptionRules:
        """What tasks of this user may ask of Slurm, above the options of every job; raises UserRefused."""
        return self.users.rules_for(user, replace(self.staging.slurm, site=self.slurm_options))

    def unix_user_of(self, user: GirderUser | None) -> str:
        """The Unix user whom jobs of this user run as; empty: the worker's own. Raises UserRefused."""
        name = self.users.unix_user_of(user)
        if not name or name == own_name():
            return ""
        self.unix_users.check(name, uid_of(name))
        return name


@dataclass(frozen=True)
class Services:
    """What the steps act through."""

    clock: Clock
    runner: CommandRunner
    cluster: Cluster
    #: Runs jobs on the worker's own host: for calls that somebody waits for.
    direct: DirectCluster
    #: Of jobs that run as the worker's own Unix user.
    runs: RunFiles
    images: SifStore
    updates: JobUpdates
    users: GirderUsers
    results: ResultSender
    #: Whether Celery knows that this task was revoked.
    is_revoked: Callable[[str], bool]
    #: Keeps a message that cannot be run here: (message, why).
    keep_unhandled: Callable[[Mapping[str, Any], str], object]
    #: The classes that a message may become objects of.
    admitted_classes: frozenset[str] = STOCK_CLASSES
    #: Another word after each wish that `girder-slurm cancel` leaves.
    cancel_news: Callable[[], str] = str
    #: The tokens of all jobs that any worker on this root carries.
    live_tokens: Callable[[], set[str]] = set
    #: The names of Slurm jobs that run programs of this worker.
    command_tokens: Callable[[], set[str]] = set
    #: The cluster's partitions; raises ClusterUnreachable. Empty where they are not known.
    partitions: Callable[[], Mapping[str, Partition]] = dict
    #: Girder's settings for Slurm, as the Girder of this job tells them; raises GirderUnreachable.
    girder_settings: Callable[[GirderJob], Mapping[str, object]] = field(default=lambda _job: {})
    #: The run files of another Unix user, by their name; raises OSError. None where no job runs as another.
    runs_as: Callable[[str], RunFiles] | None = None
    #: Told of each job that is over: task id and state.
    job_ended: Callable[[str, JobState], None] = field(default=lambda _task_id, _state: None)
    #: Set when the worker stops: steps end where they can be taken up again.
    stopping: threading.Event = field(default_factory=threading.Event)

    def cluster_of(self, job: LiveJob) -> Cluster:
        """Where this job runs."""
        return self.direct if job.state.cluster == DIRECT else self.cluster

    def runs_of(self, attempt: JobState | EarlierAttempt) -> RunFiles:
        """The run files of the Unix user whom this attempt runs as; raises OSError where they cannot be reached."""
        return self.runs_for(attempt.unix_user)

    def runs_for(self, unix_user: str) -> RunFiles:
        """The run files of a Unix user; empty: of the worker's own."""
        if not unix_user:
            return self.runs
        if self.runs_as is None:
            msg = f"It runs as the Unix user {unix_user}, and no job does here: see `unix_users` in [users]."
            raise OSError(errno.EPERM, msg)
        return self.runs_as(unix_user)

    def decoded(self, job: LiveJob) -> DecodedTask:
        """The job's message as objects; raises MessageUndecodable."""
        if job.decoded is None:
            return self.decode(job.record.message())
        return job.decoded

    def decode(self, message: Mapping[str, Any]) -> DecodedTask:
        """The objects of a message; raises MessageUndecodable."""
        return decode(message, self.admitted_classes)

    def checker(self, job: LiveJob) -> Callable[[], None]:
        """A function that raises JobCancelled once the job is known to be cancelled."""

        def check() -> None:
            if not job.cancel_seen and self.is_revoked(job.task_id):
                job.cancel_seen = "in Girder"
            if job.cancel_seen or job.state.cancel:
                raise JobCancelled(job.cancel_seen or job.state.cancel)
            if self.stopping.is_set():
                raise WorkerStopping("The worker stops.")

        return check


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
