"""`girder-slurm doctor`: is this site ready?"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from girder_worker_slurm.cli.answers import NO, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from girder_worker_slurm.doctor.checklist import Site
    from girder_worker_slurm.doctor.finding import Finding

_COMMAND_SECONDS = 60.0
_COLOURS = {"ok": "green", "skip": "blue", "warn": "yellow", "fail": "red"}


@click.command("doctor", short_help="Check this site and say what to mend.")
@click.option(
    "--no-probe", is_flag=True, help="Submit no probe job; nothing on the compute nodes is looked at."
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="Seconds to wait for the probe job.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list of findings instead of text.")
def doctor_command(*, no_probe: bool, timeout_seconds: float, as_json: bool) -> None:
    """Check this site in the order in which a job meets it, and say what to do about what is wrong.

    Looks at the settings, the directories, running workers, the broker and its queues, Girder, Slurm and Apptainer, and
    submits a small job with the worker's own sbatch options to see the same from a compute node. Changes nothing and
    takes no task; the probe job and its files are removed, also after Ctrl-C. Safe beside a running worker.

    Each line is `ok`, `warn` (jobs run, but somebody should look), `FAIL` (jobs will not run) or `skip` (not looked at,
    since something that it needs failed). The exit code is 1 if anything failed. Run it as the user of the worker, on the
    worker's machine, with the worker's settings.

    \b
    Examples:
      girder-slurm doctor
      girder-slurm doctor --no-probe
      girder-slurm doctor --timeout 900 --json
    """  # noqa: D301 - click wants the character
    from girder_worker_slurm.doctor.configuration import read_settings  # noqa: PLC0415 - the help must come at once
    from girder_worker_slurm.doctor.finding import Finding, Level, fail  # noqa: PLC0415
    from girder_worker_slurm.errors import StartRefused  # noqa: PLC0415
    from girder_worker_slurm.settings import settings_files  # noqa: PLC0415

    settings = read_settings(settings_files(os.environ), os.environ)
    if isinstance(settings, Finding):
        findings = iter([settings])
    else:
        try:
            findings = _examine(_site(settings, timeout_seconds, with_probe=not no_probe))
        except StartRefused as error:  # the module of Slurm's commands
            findings = iter([fail("Slurm commands", str(error), "Nothing else was looked at.")])
    found = []
    with _termination_as_interrupt(), _waiting_shown(is_shown=not as_json and sys.stderr.isatty()):
        for finding in findings:
            found.append(finding)
            if not as_json:
                _print(finding)
    if as_json:
        print_json([finding.as_json() for finding in found])
    else:
        _print_sum(found)
    if any(finding.level is Level.FAIL for finding in found):
        sys.exit(NO)


def _examine(site: Site) -> Iterator[Finding]:
    from girder_worker_slurm.doctor.checklist import examine  # noqa: PLC0415

    return examine(site)


def _site(settings: Any, timeout_seconds: float, *, with_probe: bool) -> Site:
    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415
    from girder_worker_slurm.assembly import (  # noqa: PLC0415
        make_cluster,
        make_runner,
        make_runs_as,
        slurm_options,
        unix_user_rules,
    )
    from girder_worker_slurm.cluster.partition_list import PartitionList  # noqa: PLC0415
    from girder_worker_slurm.cluster.slurm_module import slurm_environment  # noqa: PLC0415
    from girder_worker_slurm.doctor.checklist import Site  # noqa: PLC0415
    from girder_worker_slurm.options.shapes import plain_options  # noqa: PLC0415
    from girder_worker_slurm.settings import settings_files  # noqa: PLC0415

    runner, clock = make_runner(), SystemClock()
    # A person waits: no command gets the minutes that the worker gives it.
    seconds = min(settings.slurm.command_timeout_seconds, _COMMAND_SECONDS)
    hasty = settings.slurm.model_copy(update={"command_timeout_seconds": seconds})
    commands = slurm_environment(settings.slurm.slurm_module, runner, os.environ)
    cluster = make_cluster(settings.model_copy(update={"slurm": hasty}), runner, clock, commands)
    return Site(
        settings=settings,
        files=settings_files(os.environ),
        environment=os.environ,
        runner=runner,
        clock=clock,
        cluster=cluster,
        slurm_options=plain_options(slurm_options(settings)),
        partitions=PartitionList(cluster.partitions, clock),
        commands=commands,
        timeout_seconds=timeout_seconds,
        with_probe=with_probe,
        runs_as=make_runs_as(settings, clock, os.environ),
        unix_users=unix_user_rules(settings),
    )


def _print(finding: Finding) -> None:
    word = "FAIL" if finding.level.value == "fail" else finding.level.value
    label = click.style(f"{word:<4}", fg=_COLOURS[finding.level.value], bold=word == "FAIL")
    click.echo(f"{label}  {finding.check}: {finding.found}")
    if finding.remedy:
        click.echo(f"      -> {finding.remedy}")


def _print_sum(found: list[Finding]) -> None:
    failed = sum(finding.level.value == "fail" for finding in found)
    warned = sum(finding.level.value == "warn" for finding in found)
    if failed:
        click.echo(f"{failed} failed, {warned} to look at: jobs will not run here as it is.")
    elif warned:
        click.echo(f"Nothing failed, {warned} to look at.")
    else:
        click.echo("All is well.")


def _waiting_shown(*, is_shown: bool) -> contextlib.AbstractContextManager[Any]:
    if not is_shown:
        return contextlib.nullcontext()
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True).status("looking (a probe job may take a while to start) ...")


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM as Ctrl-C: the probe job must not be left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
