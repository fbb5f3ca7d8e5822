"""What the steps of a job share: what they act through, the settings they need, and how they wait."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from girder_worker_slurm.celery_worker.message import DecodedTask, decode
from girder_worker_slurm.errors import JobCancelled, WorkerStopping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.run.image_rules import ImageRule
    from girder_worker_singularity.sif.store import SifStore
    from girder_worker_slurm.cluster.direct_cluster import DirectCluster
    from girder_worker_slurm.cluster.interface import Cluster
    from girder_worker_slurm.cluster.run_directory import RunDirectories
    from girder_worker_slurm.girder.inputs import StagingRules
    from girder_worker_slurm.girder.job_updates import JobUpdates
    from girder_worker_slurm.job.live_job import LiveJob

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
    #: Whether Docker's limits become sbatch options.
    honours_docker_resources: bool = True


@dataclass(frozen=True)
class StoryRules:
    """The settings that the steps need."""

    jobs_root: Path
    token_prefix: str
    apptainer: str
    slurm_options: tuple[tuple[str, str], ...]
    staging: StagingRules
    containers: ContainerRules = ContainerRules()
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

    def cluster_of(self, job: LiveJob) -> Cluster:
        """Where this job runs."""
        return self.direct if job.state.cluster == DIRECT else self.cluster

    def decoded(self, job: LiveJob) -> DecodedTask:
        """The job's message as objects; raises MessageUndecodable."""
        if job.decoded is None:
            return decode(job.record.message(), self.celery_app)
        return job.decoded

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
