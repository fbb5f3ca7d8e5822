"""Whether Slurm would take a job that wants a GPU: it is asked itself, and nothing is submitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.cluster.slurm_commands import option_arguments
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.options.shapes import plain_options
from girder_worker_slurm.script.render import sbatch_head
from girder_worker_slurm.script.resources import job_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from girder_worker_singularity.command_runner import CommandResult
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.doctor.slurm import SlurmQuestions
    from girder_worker_slurm.settings import Settings

CHECK = "GPUs"


def check_gpus(
    slurm: SlurmQuestions, settings: Settings, site_options: Sequence[tuple[str, str]]
) -> Iterator[Finding]:
    """What Slurm says to the options of a job with one GPU; nothing if the site gives none (`gpu_kind = none`)."""
    if settings.singularity.gpu_kind == "none":
        return
    try:
        script = settings.slurm.submit_script
        head = () if script is None else sbatch_head(script.read_text(encoding="utf-8", errors="replace"))
        asked = job_options(
            site_options, ResourceWishes(gpus=1), head=head, gpu_options=settings.slurm.gpu_options
        )
        answer = slurm.ask(
            "sbatch",
            "--test-only",
            *option_arguments(plain_options(asked.options)),
            stdin="\n".join(("#!/bin/sh", *head, "true", "")),
        )
    except (CommandError, OSError, ValueError) as error:
        yield warn(CHECK, f"{error}", "Look whether `sbatch --test-only` works for this user.")
        return
    yield from judge_gpus(answer, asked.options, is_set=bool(settings.slurm.gpu_options))


def judge_gpus(
    answer: CommandResult, options: Sequence[tuple[str, str]], *, is_set: bool
) -> Iterator[Finding]:
    """What the answer of `sbatch --test-only` means."""
    if answer.returncode == 0:
        yield ok(CHECK, "Slurm would take a job that wants one.")
        return
    lines = [line.strip() for line in (answer.stderr or answer.stdout).splitlines() if line.strip()]
    said = " ".join(lines)[-300:].rstrip(".") or f"exit code {answer.returncode}"
    shown = " ".join(f"{name}={value}" for name, value in options)
    if is_set:
        yield fail(
            CHECK,
            f"Slurm refuses a job that wants one ({shown}): {said}.",
            "Correct [slurm.gpu_options]; `sinfo -o '%P %G'` lists partitions and their GPUs.",
        )
    else:
        yield warn(
            CHECK,
            f"Slurm refuses a job that wants one ({shown}): {said}.",
            "Set [slurm.gpu_options], or `gpu_kind = none` in [singularity] for a cluster without GPUs.",
        )
