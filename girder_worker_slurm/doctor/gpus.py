"""Whether Slurm would take a job that wants a GPU: it is asked itself, and nothing is submitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.doctor.trial_submission import refusal, site_head, try_options
from girder_worker_slurm.errors import ClusterUnreachable
from girder_worker_slurm.script.resources import job_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from girder_worker_singularity.command_runner import CommandResult
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.doctor.slurm import SlurmQuestions
    from girder_worker_slurm.doctor.trial_submission import Partitions
    from girder_worker_slurm.settings import Settings

CHECK = "GPUs"


def check_gpus(
    slurm: SlurmQuestions,
    settings: Settings,
    site_options: Sequence[tuple[str, str]],
    partitions: Partitions = dict,
) -> Iterator[Finding]:
    """What Slurm says to the options of a job with one GPU; nothing if the site gives none (`gpu_kind = none`).

    Worth asking only where it takes the site's options without one (`check_site_options`).
    """
    if settings.singularity.gpu_kind == "none":
        return
    try:
        head = site_head(settings)
        asked = job_options(
            site_options, ResourceWishes(gpus=1), head=head, gpu_options=settings.slurm.gpu_options
        )
        answer = try_options(slurm, asked.options, head=head, partitions=partitions)
    except (CommandError, ClusterUnreachable, OSError, ValueError) as error:
        yield warn(CHECK, f"{error}", "Look whether `sbatch --test-only` works for this user.")
        return
    yield from judge_gpus(answer, asked.options, is_set=bool(settings.slurm.gpu_options))


def judge_gpus(
    answer: CommandResult, options: Sequence[tuple[str, str]], *, is_set: bool
) -> Iterator[Finding]:
    """What the answer of `sbatch --test-only` means."""
    said = refusal(answer)
    if not said:
        yield ok(CHECK, "Slurm would take a job that wants one.")
        return
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
