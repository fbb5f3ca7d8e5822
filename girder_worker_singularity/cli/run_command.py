"""`girder-singularity run`: does on this machine what a job would do on a node."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from girder_worker_singularity.cli.answers import Refusal, Unclear
from girder_worker_singularity.cli.ending import tidied_up

if TYPE_CHECKING:
    from girder_worker_singularity.cli.site import SingularitySite
    from girder_worker_singularity.run.mounts import Mount
    from girder_worker_singularity.sif.shelf import Sif

_OVERLAY_SECONDS = 300.0


@click.command(
    "run",
    short_help="Run an image as a job would.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="SRC:DST[:ro]",
    help="A file or directory of this machine to be seen in the container; may be repeated.",
)
@click.option(
    "--workdir", metavar="DIR", help="Working directory in the container, instead of the image's own."
)
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable for the container; without a value, that of this shell. May be repeated.",
)
@click.option("--entrypoint", metavar="PROGRAM", help="Start this instead of the image's own program.")
@click.option(
    "--gpu", is_flag=True, help="With the machine's NVIDIA GPUs, also if the image does not ask for them."
)
@click.option("--no-network", is_flag=True, help="Without network.")
@click.option(
    "--print-command",
    is_flag=True,
    help="Start nothing; print the command line for a shell, and leave what it needs.",
)
@click.argument("image")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
@click.pass_context
def run_command(
    ctx: click.Context,
    *,
    mounts: tuple[str, ...],
    workdir: str | None,
    variables: tuple[str, ...],
    entrypoint: str | None,
    gpu: bool,
    no_network: bool,
    print_command: bool,
    image: str,
    arguments: tuple[str, ...],
) -> None:
    """Run an image here with the command line that a job gets: own processes, empty home, none of the shell's variables.

    The SIF is made first if it is not there. What stands after IMAGE goes to the container as it is; without any
    arguments the image's own command is used. Relative SRC paths count from here. The container reads nothing from the
    keyboard. The exit code is the container's own.

    \b
    Examples:
      girder-singularity run team/tool:1 --help
      girder-singularity run --mount .:/data team/tool:1 Segment /data/in.tif /data/out.xml
      girder-singularity run --print-command team/tool:1 --list_cli
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.cli.progress import shown_progress  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.cli.site import site_store  # noqa: PLC0415
    from girder_worker_singularity.command_runner import run_in_foreground  # noqa: PLC0415
    from girder_worker_singularity.sif.use import take  # noqa: PLC0415
    from girder_worker_singularity.tree import remove_tree  # noqa: PLC0415

    site = site_store()
    environment = _passed_on(_environment(variables))
    wanted = _Wanted(_mounts(mounts), environment, workdir, entrypoint, gpu=gpu, no_network=no_network)
    with tidied_up(), shown_progress(1) as begin:
        sif = site.store.ensure(image, on_progress=begin(image))
    if not take(sif.path, site.clock):
        msg = f"{sif.path} was removed a moment ago; try again."
        raise Refusal(msg)
    scratch = Path(tempfile.mkdtemp(prefix="girder-singularity-run-"))
    if print_command:
        click.echo(shlex.join(wanted.argv(site, sif, scratch, arguments)))
        click.echo(f"girder-singularity: {scratch} is the container's /tmp; it is left to you.", err=True)
        return
    try:
        code = run_in_foreground(wanted.argv(site, sif, scratch, arguments))
    finally:
        remove_tree(scratch)
    ctx.exit(code if code >= 0 else 128 - code)


class _Wanted:
    """What was asked for on the command line."""

    def __init__(
        self,
        mounts: tuple[Mount, ...],
        environment: dict[str, str],
        workdir: str | None,
        entrypoint: str | None,
        *,
        gpu: bool,
        no_network: bool,
    ) -> None:
        self._mounts = mounts
        self._environment = environment
        self._workdir = workdir
        self._entrypoint = entrypoint
        self._gpu = gpu
        self._no_network = no_network

    def argv(
        self, site: SingularitySite, sif: Sif, scratch: Path, arguments: tuple[str, ...]
    ) -> tuple[str, ...]:
        """The command line, whose variables are in a file in the scratch directory."""
        from girder_worker_singularity.run.container import (  # noqa: PLC0415
            ContainerSpec,
            container_argv,
            container_environment,
            environment_file_text,
            overlay_argv,
        )
        from girder_worker_singularity.run.image_rules import rule_for  # noqa: PLC0415

        file, overlay = scratch / "environment", scratch / "overlay.img"
        rule = rule_for(site.rules, str(sif.reference))
        overlay_mib = (rule.overlay_mib or site.overlay_mib) if rule.writable == "overlay" else 0
        gpu = rule.gpu or site.gpu_kind
        spec = ContainerSpec(
            sif=str(sif.path),
            image=sif.config,
            mounts=self._mounts,
            environment=self._environment,
            environment_file=str(file),
            scratch=str(scratch),
            working_dir=self._workdir,
            entrypoint=None if self._entrypoint is None else (self._entrypoint,),
            gpu=gpu if gpu != "none" and (self._gpu or sif.config.needs_nvidia) else None,
            writable_tmpfs=rule.writable == "tmpfs" or (rule.writable == "overlay" and not overlay_mib),
            overlay=str(overlay) if overlay_mib else None,
            fakeroot=bool(rule.fakeroot),
            network_none=self._no_network or bool(rule.network_none),
        )
        if overlay_mib:
            make = overlay_argv(str(overlay), overlay_mib, fakeroot=spec.fakeroot, apptainer=site.apptainer)
            made = site.runner.run(make, timeout_seconds=_OVERLAY_SECONDS)
            if made.returncode != 0:
                msg = f"The overlay cannot be made: {(made.stderr or made.stdout).strip()}"
                raise Refusal(msg)
        file.touch(mode=0o600)
        file.write_text(environment_file_text(container_environment(spec)), encoding="utf-8")
        return container_argv(spec, apptainer=site.apptainer, arguments=arguments)


def _mounts(texts: tuple[str, ...]) -> tuple[Mount, ...]:
    from girder_worker_singularity.run.mounts import mounts_from_docker_volumes  # noqa: PLC0415

    absolute = []
    for text in texts:
        source, colon, rest = text.partition(":")
        absolute.append(text if not colon or not source else f"{Path(source).absolute()}:{rest}")
    return tuple(mounts_from_docker_volumes(absolute))


def _passed_on(environment: dict[str, str]) -> dict[str, str]:
    from girder_worker_singularity.run.container import passable_environment  # noqa: PLC0415

    passed, left_out = passable_environment(environment)
    for name in left_out:
        click.echo(
            f"girder-singularity: Apptainer cannot hand the variable {name!r} over; it is left out.", err=True
        )
    return passed


def _environment(pairs: tuple[str, ...]) -> dict[str, str]:
    environment = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name:
            msg = f"{pair!r} is not written as NAME=VALUE."
            raise Unclear(msg)
        with contextlib.suppress(KeyError):  # as with Docker: what the shell does not have is not set
            environment[name] = value if equals else os.environ[name]
    return environment
