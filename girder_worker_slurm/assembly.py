"""Joins the parts into one worker. The only place that chooses implementations."""

from __future__ import annotations

import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.assembly import make_store
from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_singularity.run.image_rules import parse_image_rule
from girder_worker_singularity.sif.prune import DAY_SECONDS, PruneRules
from girder_worker_singularity.source.girder_images import account_in, girder_images
from girder_worker_slurm.celery_worker.admitted_objects import (
    ACCEPTED_FORMATS,
    admitted_classes,
    guard_decoding,
)
from girder_worker_slurm.celery_worker.bounded_unpacking import bound_unpacking
from girder_worker_slurm.celery_worker.consumer_switch import ConsumerSwitch
from girder_worker_slurm.celery_worker.intake import Intake
from girder_worker_slurm.celery_worker.result import CeleryResults
from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.direct_cluster import DirectCluster
from girder_worker_slurm.cluster.partition_list import PartitionList
from girder_worker_slurm.cluster.run_as import RunAs, own_name
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.cluster.runs_of_users import RunsOfUsers
from girder_worker_slurm.cluster.slurm_module import slurm_environment
from girder_worker_slurm.doctor.broker_tls import tls_options
from girder_worker_slurm.doctor.checklist import start_checks
from girder_worker_slurm.errors import StartRefused
from girder_worker_slurm.girder.inputs import StagingRules
from girder_worker_slurm.girder.job_updates import JobUpdates
from girder_worker_slurm.girder.new_files import ArchiveRules
from girder_worker_slurm.girder.server_plugin import ServerPlugin
from girder_worker_slurm.girder.users import GirderUsers
from girder_worker_slurm.job.accounting import Accounting
from girder_worker_slurm.job.retention import ImageRetention, RemovedImages, Retention
from girder_worker_slurm.job.retries import RetryRules
from girder_worker_slurm.job.run_job import JobStory
from girder_worker_slurm.job.services import ContainerRules, Services, StoryRules
from girder_worker_slurm.job.slurm_runner import SlurmCommandRunner
from girder_worker_slurm.job.submit_turns import SubmitRules
from girder_worker_slurm.job.supervisor import Supervisor, SupervisorRules
from girder_worker_slurm.options.binds import asked_groups, parse_site_binds
from girder_worker_slurm.options.layers import option_name
from girder_worker_slurm.options.limits import parse_limits
from girder_worker_slurm.options.requests import OptionRules, parse_allowed, parse_profile
from girder_worker_slurm.options.shapes import plain_options
from girder_worker_slurm.records.cancel_request import cancel_news
from girder_worker_slurm.records.event_delay import event_grace
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.settings import Settings, generic_origins, load_settings, settings_files
from girder_worker_slurm.users.mapping_file import read_mapping
from girder_worker_slurm.users.unix_users import UnixUserRules
from girder_worker_slurm.worker import SlurmWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.sif.store import SifStore
    from girder_worker_slurm.cluster.interface import Cluster
    from girder_worker_slurm.users.mapping import UserMapping

logger = logging.getLogger(__name__)

#: Space for the listing of tens of thousands of jobs.
_OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024


def worker_id(settings: Settings) -> str:
    """The worker's name among those that share the jobs root."""
    return settings.jobs.worker_id or socket.gethostname()


def make_runner() -> CommandRunner:
    """Runs programs on this host."""
    return LocalCommandRunner(output_limit_bytes=_OUTPUT_LIMIT_BYTES)


def make_runs_as(
    settings: Settings, clock: Clock, environment: Mapping[str, str], root: Path | None = None
) -> RunsOfUsers:
    """The way to the run directories of other Unix users."""
    users = settings.users
    return RunsOfUsers(
        users.run_root,
        program=users.files_program or str(Path(sys.executable).with_name("girder-slurm-files")),
        transfers=(root or settings.jobs_root) / "tmp" / "transfers",
        run_as=RunAs.here(),
        environment=environment,
        clock=clock,
    )


def unix_user_rules(settings: Settings) -> UnixUserRules:
    """Whom jobs may run as."""
    return UnixUserRules(tuple(settings.users.unix_users), settings.users.minimum_uid)


def make_cluster(
    settings: Settings,
    runner: CommandRunner,
    clock: Clock,
    environment: Mapping[str, str],
    other_users: Callable[[], Sequence[str]] = tuple,
) -> CommandCluster:
    """The configured way to reach Slurm; `environment` is that of its commands (`slurm_environment`).

    `other_users` are the Unix users other than the worker's whom jobs of ours run as.
    """
    slurm = settings.slurm
    options = CommandOptions(
        user=own_name(),
        other_users=other_users,
        timeout_seconds=slurm.command_timeout_seconds,
        commands_dir=slurm.commands_dir,
        environment=environment,
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
        options=plain_options(
            tuple({**dict(slurm_options(settings)), **settings.slurm.convert_options}.items())
        ),
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
        archive_dir=singularity.archive_dir,
    )


def make_removed_images(settings: Settings, clock: Clock) -> RemovedImages | None:
    """What removes SIFs of images that Girder has no more, if the site wants it."""
    key_file = settings.girder.prune_key_file
    if key_file is None or settings.singularity.pull_policy == "never":
        return None
    return RemovedImages(
        settings.sif_image_path,
        settings.jobs_root / "cli",
        clock,
        # The file is read anew each time: keys are changed.
        listed=lambda: girder_images(settings.girder.api_url, account_in(key_file)),
        archive_dir=settings.singularity.archive_dir,
    )


def slurm_options(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The options of every job, by their long names; a shape is not turned into sbatch's terms (`plain_options`)."""
    options = {option_name(name): value for name, value in settings.slurm.options.items()}
    if settings.slurm.partition:
        options.setdefault("partition", settings.slurm.partition)
    return tuple(options.items())


def option_rules(settings: Settings) -> OptionRules:
    """What tasks may ask of Slurm."""
    slurm = settings.slurm
    return OptionRules(
        site=slurm_options(settings),
        profiles=tuple(parse_profile(pattern, text) for pattern, text in slurm.profiles.items()),
        allowed=parse_allowed(slurm.allow_options),
        girder_allowed=parse_allowed([*slurm.allow_options, *slurm.allow_girder_settings]),
        limits=parse_limits(slurm.limits),
    )


def container_rules(settings: Settings) -> ContainerRules:
    """How containers are run here."""
    singularity = settings.singularity
    return ContainerRules(
        images={pattern: parse_image_rule(words) for pattern, words in singularity.images.items()},
        overlay_mib=singularity.overlay_mib,
        gpu_kind=singularity.gpu_kind,
        gpu_options=settings.slurm.gpu_options,
        binds=parse_site_binds(settings.slurm.binds),
        honours_docker_resources=settings.slurm.docker_resources == "honour",
    )


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
    admitted = admitted_classes(settings.celery.allow_classes)
    app.conf.accept_content = list(ACCEPTED_FORMATS)
    guard_decoding(admitted)
    bound_unpacking()
    tls = tls_options(settings.celery)
    if tls is not None:
        app.conf.broker_use_ssl = tls
    clock = SystemClock()
    runner = make_runner()
    commands = slurm_environment(settings.slurm.slurm_module, runner, os.environ)
    if failing := start_checks(settings, commands, runner):
        raise StartRefused("\n  ".join(["", *map(str, failing)]) if len(failing) > 1 else str(failing[0]))
    mapping = read_mapping(settings.users.mapping_file, settings.users.unmapped)
    root = JobsRoot(settings.jobs_root, worker_id(settings))
    root.prepare()
    prefix = root.token_prefix(
        root.identify(settings.celery.broker.get_secret_value(), settings.celery.queues)
    )
    runs = RunDirectories(root.path)
    runs.prepare()
    runs_as = make_runs_as(settings, clock, os.environ, root.path)
    lease = root.lease(clock)
    updates = JobUpdates()
    plugin = ServerPlugin(clock)
    cluster = make_cluster(settings, runner, clock, commands, runs_as.users)
    conversions = make_conversions(settings, cluster, clock, prefix)
    binds_ask_groups, binds_ask_names = asked_groups(parse_site_binds(settings.slurm.binds))
    accounting = (
        Accounting(cluster.accounted, updates, clock, root.ended) if settings.slurm.ask_accounting else None
    )
    services = Services(
        clock=clock,
        runner=runner,
        cluster=cluster,
        direct=DirectCluster(runner, clock, limit_seconds=settings.slurm.direct_limit_seconds),
        runs=runs,
        # Also where the mapping names none any more: jobs may be left.
        runs_as=runs_as if settings.users.run_root else None,
        images=make_images(settings, runner, clock, conversions),
        updates=updates,
        users=GirderUsers(
            clock,
            with_profile=mapping.needs_profile or binds_ask_groups,
            with_group_names=mapping.needs_group_names or binds_ask_names,
            plugin=plugin,
        ),
        results=CeleryResults(app),
        admitted_classes=admitted,
        is_revoked=_is_revoked,
        keep_unhandled=root.keep_unhandled,
        cancel_news=partial(cancel_news, root.records),
        partitions=PartitionList(cluster.partitions, clock),
        girder_settings=plugin.settings,
        job_ended=accounting.job_ended if accounting is not None else _ignore,
        live_tokens=root.live_tokens,
        command_tokens=conversions.tokens if conversions is not None else set,
    )
    story = JobStory(services, _story_rules(settings, prefix, mapping))
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
        lambda work: supervisor.run_in_pool("unhandled", work),
        api_url=settings.girder.api_url,
    )
    retention = Retention(
        root,
        services.runs_of,
        clock,
        keep_days=settings.jobs.keep_days,
        keep_failed_days=settings.jobs.keep_failed_days,
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
        make_removed_images(settings, clock),
        conversions,
        accounting,
        runs_as,
        consumers,
    )


def _story_rules(settings: Settings, prefix: str, mapping: UserMapping) -> StoryRules:
    staging = StagingRules(
        api_url=settings.girder.api_url,
        mount_prefix=settings.slurm.mount_prefix,
        direct_paths=tuple(settings.slurm.direct_paths),
        run_options=settings.singularity.run_options,
        slurm=option_rules(settings),
    )
    return StoryRules(
        jobs_root=settings.jobs_root,
        token_prefix=prefix,
        apptainer=settings.singularity.apptainer,
        slurm_options=slurm_options(settings),
        staging=staging,
        containers=container_rules(settings),
        archives=ArchiveRules(tuple(settings.jobs.archive_new_files), settings.jobs.archive_limit_bytes),
        users=mapping,
        unix_users=unix_user_rules(settings),
        hooks=settings.slurm.hooks,
        submit_script=settings.slurm.submit_script,
        script_template=settings.slurm.script_template,
        logs_dir=settings.jobs.logs_dir,
        log_limit_bytes=settings.girder.log_limit_bytes,
        event_grace_seconds=event_grace(settings.jobs_root, settings.slurm.event_grace_seconds),
        retries=RetryRules(settings.slurm.infrastructure_retries, settings.slurm.preemption_retries),
    )


def _supervisor_rules(settings: Settings, prefix: str) -> SupervisorRules:
    return SupervisorRules(
        token_prefix=prefix,
        event_seconds=settings.slurm.event_seconds,
        poll_seconds=settings.slurm.poll_seconds,
        submits=SubmitRules(
            settings.jobs.max_submitted,
            settings.jobs.max_submitted_per_user,
            settings.slurm.submits_per_minute,
            at_once=4 * settings.slurm.parallel_submits,
        ),
        updates_per_second=settings.girder.updates_per_second,
        log_interval_seconds=settings.girder.log_interval_seconds,
        status_check_seconds=settings.girder.status_check_seconds,
        parallel_submits=settings.slurm.parallel_submits,
    )


def _ignore(_task_id: str, _state: object) -> None:
    """Nobody asks what the job used."""


def _is_revoked(task_id: str) -> bool:
    from celery.worker.state import revoked  # noqa: PLC0415 - the command line must not load Celery

    return task_id in revoked
