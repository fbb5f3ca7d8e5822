"""Joins the parts into one worker. The only place that chooses implementations."""

from __future__ import annotations

import getpass
import logging
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.assembly import make_store
from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_singularity.lease import LeaseLost
from girder_worker_singularity.run.image_rules import parse_image_rule
from girder_worker_singularity.sif.prune import DAY_SECONDS, PruneRules
from girder_worker_slurm.celery_worker.intake import Intake
from girder_worker_slurm.celery_worker.result import CeleryResults
from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.direct_cluster import DirectCluster
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.doctor.checklist import start_checks
from girder_worker_slurm.errors import StartRefused
from girder_worker_slurm.girder.inputs import StagingRules
from girder_worker_slurm.girder.job_updates import JobUpdates
from girder_worker_slurm.job.retention import ImageRetention, Retention
from girder_worker_slurm.job.run_job import JobStory
from girder_worker_slurm.job.services import ContainerRules, Services, StoryRules
from girder_worker_slurm.job.slurm_runner import SlurmCommandRunner
from girder_worker_slurm.job.supervisor import Supervisor, SupervisorRules
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.settings import Settings, generic_origins, load_settings, settings_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.lease import Lease
    from girder_worker_singularity.sif.store import SifStore
    from girder_worker_slurm.cluster.interface import Cluster

logger = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 5.0
_PAUSE_SECONDS = 5.0
_EX_TEMPFAIL = 75
#: Space for the listing of tens of thousands of jobs.
_OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024


def worker_id(settings: Settings) -> str:
    """The worker's name among those that share the jobs root."""
    return settings.jobs.worker_id or socket.gethostname()


def make_runner() -> CommandRunner:
    """Runs programs on this host."""
    return LocalCommandRunner(output_limit_bytes=_OUTPUT_LIMIT_BYTES)


def make_cluster(settings: Settings, runner: CommandRunner, clock: Clock) -> Cluster:
    """The configured way to reach Slurm."""
    slurm = settings.slurm
    options = CommandOptions(
        users=(getpass.getuser(),),
        timeout_seconds=slurm.command_timeout_seconds,
        commands_dir=slurm.commands_dir,
    )
    return CommandCluster(runner, clock, CallBudget(slurm.commands_per_second, clock), options)


def make_conversions(
    settings: Settings, cluster: Cluster, clock: Clock, prefix: str
) -> SlurmCommandRunner | None:
    """Where images are converted, if that is not this machine."""
    if not settings.slurm.convert_images:
        return None
    return SlurmCommandRunner(
        cluster,
        clock,
        settings.jobs_root / "tmp" / "commands",
        token_prefix=prefix,
        options=tuple({**dict(slurm_options(settings)), **settings.slurm.convert_options}.items()),
        scratch_variables=("TMPDIR", "APPTAINER_TMPDIR", "SINGULARITY_TMPDIR"),
    )


def make_images(
    settings: Settings, runner: CommandRunner, clock: Clock, conversions: CommandRunner | None = None
) -> SifStore:
    """The store of SIFs; `conversions` is where they are made, if not where `runner` runs programs."""
    if conversions is None:
        return make_store(settings.singularity, settings.sif_image_path, runner, clock)
    # What accompanies a conversion on a node must be seen there; it unpacks in a directory of the node.
    section = settings.singularity.model_copy(update={"tmp_dir": settings.jobs_root / "tmp"})
    return make_store(section, settings.sif_image_path, runner, clock, build_runner=conversions)


def prune_rules(settings: Settings) -> PruneRules:
    """Which SIFs the worker removes by itself."""
    singularity = settings.singularity
    if singularity.pull_policy == "never":
        return PruneRules()  # what is removed could not come back
    return PruneRules(
        unused_seconds=singularity.prune_unused_days * DAY_SECONDS or None,
        most_bytes=singularity.max_store_bytes or None,
    )


def slurm_options(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The sbatch options of every job."""
    options = dict(settings.slurm.options)
    if settings.slurm.partition and not {"partition", "p"} & set(options):
        options["partition"] = settings.slurm.partition
    return tuple(options.items())


def container_rules(settings: Settings) -> ContainerRules:
    """How containers are run here."""
    singularity = settings.singularity
    return ContainerRules(
        images={pattern: parse_image_rule(words) for pattern, words in singularity.images.items()},
        overlay_mib=singularity.overlay_mib,
        gpu_kind=singularity.gpu_kind,
        gpu_options=settings.slurm.gpu_options,
        honours_docker_resources=settings.slurm.docker_resources == "honour",
    )


@dataclass
class SlurmWorker:
    """All parts of a running worker."""

    settings: Settings
    root: JobsRoot
    clock: Clock
    supervisor: Supervisor
    intake: Intake
    unhandled: UnhandledMessages
    lease: Lease
    retention: Retention
    image_retention: ImageRetention
    conversions: SlurmCommandRunner | None
    _consumers: ConsumerSwitch

    def start(self) -> None:
        """Takes up all unfinished jobs and begins to take new ones."""
        records = list(self.root.own_records())
        self.supervisor.start(records)
        self.intake.start()
        self._stop = threading.Event()
        threading.Thread(target=self._keep_house, name="gw-housekeeping", daemon=True).start()
        logger.info("%d unfinished jobs taken up from %s", len(records), self.root.path)

    def stop(self) -> None:
        """Stops; every job goes on in Slurm."""
        self._stop.set()
        self.intake.stop()
        self.supervisor.stop()
        self.lease.release()

    def attach(self, consumer: Any) -> None:
        """Tells which consumer takes messages now."""
        self._consumers.attach(consumer, is_paused=self.intake.is_paused)

    def _keep_house(self) -> None:
        """Shows that this worker lives, takes over from workers that do not, and removes what is old."""
        while not self._stop.wait(_HOUSEKEEPING_SECONDS):
            try:
                self.lease.refresh()
                for record in self.root.orphaned_records(self.clock):
                    self.supervisor.accept(record)
                self.retention.remove_old()
                self.image_retention.look_after()
                if self.conversions is not None:
                    self.conversions.end_abandoned()
            except LeaseLost:
                # Others saw this worker stand still and carry its jobs now; two must not work under one name.
                logger.critical(
                    "The lease of worker %s was taken over by another: this one stops", self.root.worker_id
                )
                self.supervisor.stop()
                # Not 0, so that a service manager starts it again; nothing is lost, everything is on disk.
                os._exit(_EX_TEMPFAIL)
            except Exception:
                logger.exception("Housekeeping failed; it is tried again")


class ConsumerSwitch:
    """Stops and restarts the taking of messages, across reconnects."""

    def __init__(self, queues: list[str]) -> None:
        self._queues = queues
        self._consumer: Any = None

    def attach(self, consumer: Any, *, is_paused: bool) -> None:
        """Uses this consumer from now on; a pause goes on. Called in the consumer's own thread."""
        self._consumer = consumer
        if is_paused:
            for name in self._queues:
                consumer.call_soon(consumer.cancel_task_queue, name)

    def pause(self) -> None:
        """Takes no more messages; returns when the consumer has stopped, or after some seconds."""
        consumer = self._consumer
        if consumer is None:
            return
        has_stopped = threading.Event()

        def stop() -> None:
            for name in self._queues:
                consumer.cancel_task_queue(name)
            has_stopped.set()

        consumer.call_soon(stop)
        # What is given back before that would be delivered again at once.
        has_stopped.wait(_PAUSE_SECONDS)

    def resume(self) -> None:
        """Takes messages again."""
        consumer = self._consumer
        if consumer is not None:
            for name in self._queues:
                consumer.call_soon(consumer.add_task_queue, name)


def assemble(app: Any, environment: Mapping[str, str]) -> SlurmWorker:
    """A worker ready to start; raises SettingsInvalid or StartRefused where it cannot work."""
    files = settings_files(environment)
    settings = load_settings(files, environment)
    for setting, variable in generic_origins(files, environment).items():
        logger.warning(
            "%s comes from the generic variable %s: make sure the compute nodes see that directory",
            setting,
            variable,
        )
    clock = SystemClock()
    runner = make_runner()
    if failing := start_checks(settings):
        raise StartRefused("\n  ".join(["", *map(str, failing)]) if len(failing) > 1 else str(failing[0]))
    root = JobsRoot(settings.jobs_root, worker_id(settings))
    root.prepare()
    prefix = root.token_prefix(
        root.identify(settings.celery.broker.get_secret_value(), settings.celery.queues)
    )
    runs = RunDirectories(root.path)
    runs.prepare()
    lease = root.lease(clock)
    updates = JobUpdates()
    cluster = make_cluster(settings, runner, clock)
    conversions = make_conversions(settings, cluster, clock, prefix)
    services = Services(
        celery_app=app,
        clock=clock,
        runner=runner,
        cluster=cluster,
        direct=DirectCluster(runner, clock, limit_seconds=settings.slurm.direct_limit_seconds),
        runs=runs,
        images=make_images(settings, runner, clock, conversions),
        updates=updates,
        results=CeleryResults(app),
        is_revoked=_is_revoked,
        keep_unhandled=root.keep_unhandled,
        live_tokens=lambda: root.live_tokens() | (conversions.tokens() if conversions else set()),
    )
    story = JobStory(services, _story_rules(settings, prefix))
    supervisor = Supervisor(services, story, _supervisor_rules(settings, prefix), on_ended=root.end)
    consumers = ConsumerSwitch(settings.celery.queues)
    intake = Intake(
        root,
        supervisor,
        clock,
        max_accepted=settings.jobs.max_accepted,
        pause=consumers.pause,
        resume=consumers.resume,
    )
    unhandled = UnhandledMessages(
        root,
        updates,
        clock,
        lambda work: supervisor.run_in_pool("girder", work),
        api_url=settings.girder.api_url,
    )
    retention = Retention(
        root, runs, clock, keep_days=settings.jobs.keep_days, keep_failed_days=settings.jobs.keep_failed_days
    )
    image_retention = ImageRetention(
        settings.sif_image_path, clock, prune_rules(settings), sifs_in_use=supervisor.sifs_in_use
    )
    return SlurmWorker(
        settings,
        root,
        clock,
        supervisor,
        intake,
        unhandled,
        lease,
        retention,
        image_retention,
        conversions,
        consumers,
    )


def _story_rules(settings: Settings, prefix: str) -> StoryRules:
    staging = StagingRules(
        api_url=settings.girder.api_url,
        mount_prefix=settings.slurm.mount_prefix,
        direct_paths=tuple(settings.slurm.direct_paths),
        run_options=settings.singularity.run_options,
    )
    return StoryRules(
        jobs_root=settings.jobs_root,
        token_prefix=prefix,
        apptainer=settings.singularity.apptainer,
        slurm_options=slurm_options(settings),
        staging=staging,
        containers=container_rules(settings),
        submit_script=settings.slurm.submit_script,
        logs_dir=settings.jobs.logs_dir,
        log_limit_bytes=settings.girder.log_limit_bytes,
        event_grace_seconds=settings.slurm.event_grace_seconds,
    )


def _supervisor_rules(settings: Settings, prefix: str) -> SupervisorRules:
    return SupervisorRules(
        token_prefix=prefix,
        event_seconds=settings.slurm.event_seconds,
        poll_seconds=settings.slurm.poll_seconds,
        max_submitted=settings.jobs.max_submitted,
        updates_per_second=settings.girder.updates_per_second,
        log_interval_seconds=settings.girder.log_interval_seconds,
        status_check_seconds=settings.girder.status_check_seconds,
        parallel_submits=settings.slurm.parallel_submits,
    )


def _is_revoked(task_id: str) -> bool:
    from celery.worker.state import revoked  # noqa: PLC0415 - the command line must not load Celery

    return task_id in revoked
