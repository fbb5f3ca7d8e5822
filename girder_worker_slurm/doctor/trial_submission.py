"""Whether Slurm would take a job with these options: it is asked itself, and nothing is submitted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_slurm.cluster.slurm_commands import option_arguments
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.doctor.slurm import OPTIONS
from girder_worker_slurm.errors import ClusterUnreachable
from girder_worker_slurm.options.layers import ChosenOption
from girder_worker_slurm.options.partitions import used_partitions, without_memory
from girder_worker_slurm.options.shapes import plain_options
from girder_worker_slurm.script.render import sbatch_head
from girder_worker_slurm.script.resources import head_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from girder_worker_singularity.command_runner import CommandResult
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.doctor.slurm import SlurmQuestions
    from girder_worker_slurm.options.partitions import Partition
    from girder_worker_slurm.settings import Settings

    Partitions = Callable[[], Mapping[str, Partition]]

#: Refusals that a job meets only for a while: nodes or a partition are down, a limit on the number of jobs is reached.
_PASSING = re.compile(
    r"\bbusy\b|not available now|\(down, drained or reserved\)|\(inactive or drain\)|MaxSubmit", re.IGNORECASE
)

_REMEDY = "Correct [slurm.options], `partition` in [slurm], or the #SBATCH lines of `submit_script`."


def site_head(settings: Settings) -> tuple[str, ...]:
    """The `#SBATCH` lines of the site's submit script; raises OSError."""
    script = settings.slurm.submit_script
    return () if script is None else tuple(sbatch_head(script.read_text(encoding="utf-8", errors="replace")))


def try_options(
    slurm: SlurmQuestions,
    options: Sequence[tuple[str, str]],
    *,
    head: Sequence[str] = (),
    partitions: Partitions = dict,
) -> CommandResult:
    """The answer of `sbatch --test-only`; raises CommandError, ClusterUnreachable, and ValueError for a reserved option.

    As for every job, options of memory are left out where Slurm knows of none.
    """
    chosen = [ChosenOption(name, value, "") for name, value in plain_options(options)]
    kept, _ = without_memory(chosen, used_partitions({**head_options(head), **dict(options)}, partitions()))
    return slurm.ask(
        "sbatch",
        "--test-only",
        *option_arguments([(option.name, option.value) for option in kept]),
        stdin="\n".join(("#!/bin/sh", *head, "true", "")),
    )


def refusal(answer: CommandResult) -> str:
    """Why Slurm would not take the job, in its own words; empty if it would."""
    if answer.returncode == 0:
        return ""
    lines = [line.strip() for line in (answer.stderr or answer.stdout).splitlines() if line.strip()]
    return " ".join(lines)[-300:].rstrip(".") or f"exit code {answer.returncode}"


def check_site_options(
    slurm: SlurmQuestions,
    settings: Settings,
    site_options: Sequence[tuple[str, str]],
    partitions: Partitions,
) -> Iterator[Finding]:
    """Whether Slurm would take a job with the options of every job and no wishes of its own."""
    try:
        answer = try_options(slurm, site_options, head=site_head(settings), partitions=partitions)
    except ValueError as error:
        yield fail(OPTIONS, f"{error}", _REMEDY)
        return
    except (CommandError, ClusterUnreachable, OSError) as error:
        yield warn(OPTIONS, f"{error}", "Look whether `sbatch --test-only` works for this user.")
        return
    yield from judge_site_options(answer, site_options)


def judge_site_options(answer: CommandResult, options: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """What the answer of `sbatch --test-only` to the options of every job means."""
    shown = " ".join(f"{name}={value}" if value else name for name, value in options) or "no options"
    said = refusal(answer)
    if not said:
        yield ok(OPTIONS, f"Slurm would take a job with {shown}.")
    elif _PASSING.search(said):
        yield warn(
            OPTIONS,
            f"Slurm would not take a job with {shown} now: {said}.",
            "Look again when nodes and partition are up and fewer jobs are there.",
        )
    else:
        yield fail(
            OPTIONS,
            f"Slurm refuses every job, with {shown}: {said}.",
            _REMEDY,
        )
