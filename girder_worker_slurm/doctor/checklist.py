"""All checks, in the order in which a job meets them; and those of them that the worker's start makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from girder_worker_slurm.cluster.run_as import RunAs
from girder_worker_slurm.doctor import (
    apptainer,
    broker,
    configuration,
    directories,
    girder_server,
    gpus,
    job_script,
    probe_verdict,
    slurm,
    trial_submission,
    unix_users,
    users,
    workers,
)
from girder_worker_slurm.doctor.finding import Check, Level, run_checks
from girder_worker_slurm.doctor.probe import Probe, ProbeRules
from girder_worker_slurm.doctor.secret_words import hiding
from girder_worker_slurm.users.unix_users import UnixUserRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_slurm.cluster.interface import Cluster
    from girder_worker_slurm.cluster.user_run_files import UserRunFiles
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.options.partitions import Partition
    from girder_worker_slurm.settings import Settings

_NETWORK_SECONDS = 10.0


@dataclass(frozen=True)
class Site:
    """What is looked at, and through what."""

    settings: Settings
    files: tuple[Path, ...]
    environment: Mapping[str, str]
    runner: CommandRunner
    clock: Clock
    cluster: Cluster
    slurm_options: tuple[tuple[str, str], ...]
    #: The environment of Slurm's commands.
    commands: Mapping[str, str]
    partitions: Callable[[], Mapping[str, Partition]]
    timeout_seconds: float = 120.0
    with_probe: bool = True
    #: The way to the run directories of other Unix users, and who they may be.
    runs_as: Callable[[str], UserRunFiles] | None = None
    unix_users: UnixUserRules = field(default_factory=UnixUserRules)


def examine(site: Site) -> Iterator[Finding]:
    """All findings about a site, as they come."""
    return run_checks(site_checks(site), hide=hiding(site.settings))


def site_checks(site: Site) -> list[Check]:
    """All checks, in order."""
    settings = site.settings
    questions = slurm.SlurmQuestions(
        site.runner,
        settings.slurm.commands_dir,
        timeout_seconds=min(settings.slurm.command_timeout_seconds, site.timeout_seconds),
        environment=site.commands,
    )
    has_script = settings.slurm.submit_script is not None
    program = settings.singularity.apptainer
    seen: list[workers.WorkerSeen] = []

    def look_for_workers() -> Iterator[Finding]:
        seen.extend(workers.workers_of(settings.jobs_root, site.clock))
        return workers.judge_workers(seen)

    def look_at_broker() -> Iterator[Finding]:
        running = sum(worker.is_running for worker in seen)
        return broker.check_broker(
            settings, running_workers=running, timeout_seconds=min(_NETWORK_SECONDS, site.timeout_seconds)
        )

    start = {
        check.name: check for check in _checks_of_start(settings, site.commands, site.runner, make=False)
    }
    checks = [
        Check(configuration.CHECK, partial(configuration.check_settings, site.files, site.environment)),
        start[directories.JOBS_ROOT],
        start[directories.LOGS_DIR],
        start[directories.SUBMIT_SCRIPT],
        start[job_script.CHECK],
        start[users.MAPPING],
        Check(
            users.CHECK,
            partial(
                users.check_users,
                settings,
                timeout_seconds=min(_NETWORK_SECONDS, site.timeout_seconds),
            ),
            (users.MAPPING,),
        ),
        Check(workers.CHECK, look_for_workers, (directories.JOBS_ROOT,)),
        Check(broker.CHECK, look_at_broker),
        Check(
            girder_server.CHECK,
            partial(
                girder_server.check_girder,
                settings.girder.api_url,
                timeout_seconds=min(_NETWORK_SECONDS, site.timeout_seconds),
            ),
        ),
        start[slurm.COMMANDS],
        Check(slurm.CONTROLLER, partial(slurm.check_controller, questions), (slurm.COMMANDS,)),
        Check(
            slurm.PARTITION,
            partial(slurm.check_partition, questions, site.slurm_options, has_script=has_script),
            (slurm.CONTROLLER,),
        ),
        Check(
            slurm.MEMORY, partial(slurm.check_memory, site.partitions, site.slurm_options), (slurm.PARTITION,)
        ),
        Check(
            slurm.CONFIGURATION,
            partial(
                slurm.check_configuration,
                questions,
                site.slurm_options,
                max_submitted=settings.jobs.max_submitted,
                has_script=has_script,
            ),
            (slurm.CONTROLLER,),
        ),
        Check(
            slurm.OPTIONS,
            partial(
                trial_submission.check_site_options,
                questions,
                settings,
                site.slurm_options,
                site.partitions,
            ),
            (slurm.PARTITION,),
        ),
        Check(
            gpus.CHECK,
            partial(gpus.check_gpus, questions, settings, site.slurm_options, site.partitions),
            (slurm.OPTIONS,),
        ),
        start[apptainer.PROGRAM],
        Check(
            apptainer.VERSION,
            partial(apptainer.check_version, program, site.runner),
            (apptainer.PROGRAM,),
        ),
        start[apptainer.SIF_DIRECTORY],
        Check(
            apptainer.CONVERSION, partial(apptainer.check_conversion, settings), (apptainer.SIF_DIRECTORY,)
        ),
        Check(
            apptainer.CONTAINER,
            partial(
                apptainer.check_container,
                program,
                site.runner,
                directories.nearest_existing(settings.sif_image_path),
            ),
            (apptainer.PROGRAM, apptainer.SIF_DIRECTORY),
        ),
    ]
    if site.runs_as is not None:
        look = partial(
            unix_users.check_unix_users,
            unix_users.UnixUserSite(
                settings,
                site.unix_users,
                site.runs_as,
                RunAs.here(),
                questions,
                site.cluster,
                site.clock,
                site.slurm_options,
                site.timeout_seconds,
                site.with_probe,
            ),
        )
        checks.append(Check(unix_users.CHECK, look, (users.MAPPING, slurm.CONTROLLER)))
    if site.with_probe:
        probe = Probe(
            settings,
            site.cluster,
            site.runner,
            site.clock,
            ProbeRules(site.slurm_options, timeout_seconds=site.timeout_seconds, partitions=site.partitions),
        )
        needs = (
            directories.JOBS_ROOT,
            directories.LOGS_DIR,
            apptainer.SIF_DIRECTORY,
            directories.SUBMIT_SCRIPT,
            slurm.CONTROLLER,
        )
        checks.append(Check(probe_verdict.CHECK, probe.run, needs))
    return checks


def start_checks(settings: Settings, commands: Mapping[str, str], runner: CommandRunner) -> list[Finding]:
    """What forbids the worker to start here; empty if nothing does.

    Makes the directories that are missing. Asks nothing over the network and starts nothing but bash, to read the
    site's lines: a broker, a Girder or a controller that is down for the moment must not keep a worker from taking up
    its jobs. `commands` is the environment of Slurm's commands.
    """
    findings = run_checks(_checks_of_start(settings, commands, runner, make=True), hide=hiding(settings))
    return [finding for finding in findings if finding.level is Level.FAIL]


def _checks_of_start(
    settings: Settings, commands: Mapping[str, str], runner: CommandRunner, *, make: bool
) -> list[Check]:
    return [
        Check(directories.JOBS_ROOT, partial(directories.check_jobs_root, settings, make=make)),
        Check(directories.LOGS_DIR, partial(directories.check_logs_dir, settings, make=make)),
        Check(directories.SUBMIT_SCRIPT, partial(directories.check_submit_script, settings)),
        Check(users.MAPPING, partial(users.check_mapping, settings)),
        Check(slurm.COMMANDS, partial(slurm.check_commands, settings.slurm.commands_dir, commands)),
        Check(slurm.OPTIONS, partial(slurm.check_options, tuple(settings.slurm.options.items()))),
        Check(job_script.CHECK, partial(job_script.check_job_script, settings, runner)),
        Check(apptainer.PROGRAM, partial(apptainer.check_program, settings.singularity.apptainer)),
        Check(apptainer.SIF_DIRECTORY, partial(apptainer.check_sif_directory, settings, make=make)),
    ]
