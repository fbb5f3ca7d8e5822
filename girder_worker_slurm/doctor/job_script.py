"""Whether bash can read the job script with the site's own lines in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.options.hooks import launcher_lines, prerun_lines
from girder_worker_slurm.options.requests import parse_profile
from girder_worker_slurm.script.render import JobScript, render_script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.options.hooks import JobHooks
    from girder_worker_slurm.settings import Settings

CHECK = "job script"
_SECONDS = 20.0
_SHOWN = 300


def check_job_script(settings: Settings, runner: CommandRunner) -> Iterator[Finding]:
    """Reads the script with `bash -n`: with the lines of [slurm], and with those of each profile; runs none of them."""
    try:
        template = settings.slurm.script_template
        site_template = template.read_text(encoding="utf-8") if template is not None else ""
        for place, hooks in _hooks(settings):
            for name, text in _pieces(place, hooks, site_template):
                if complaint := _complaint(text, runner):
                    yield fail(
                        CHECK,
                        f"bash cannot read {name}: {complaint}.",
                        "Look there for a quote, a bracket or an `if` that is not closed.",
                    )
                    return
    except (OSError, ValueError) as error:
        yield fail(CHECK, f"{error}", "Correct `script_template` in [slurm], or take it out.")
        return
    except CommandError as error:
        yield warn(CHECK, f"{error}", "Without bash on this machine it cannot be looked at.")
        return
    yield ok(CHECK, "bash can read it, with the site's own lines.")


def _hooks(settings: Settings) -> Iterator[tuple[str, JobHooks]]:
    yield "[slurm]", settings.slurm.hooks
    for pattern, text in settings.slurm.profiles.items():
        if lines := parse_profile(pattern, text).hooks:
            yield f"[slurm.profiles] {pattern}", settings.slurm.hooks.with_lines(lines)


def _pieces(place: str, hooks: JobHooks, site_template: str) -> Iterator[tuple[str, str]]:
    """The lines before and after the container, and the whole: what is wrong with the first says best where."""
    yield f"the lines before the container of {place}", "\n".join(prerun_lines(hooks))
    yield f"the lines after the container of {place}", "\n".join(hooks.postrun)
    script = JobScript(
        token="gw-doctor",  # noqa: S106 - a name
        run="/nowhere",
        spool="/nowhere",
        log="/dev/null",
        scratch="/nowhere",
        container=("true",),
        prerun=prerun_lines(hooks),
        postrun=hooks.postrun,
        launcher=launcher_lines(hooks.srun),
    )
    yield f"the job script with what {place} adds", render_script(script, site_template=site_template)


def _complaint(text: str, runner: CommandRunner) -> str:
    if not text.strip():
        return ""
    result = runner.run(["/bin/bash", "-n"], timeout_seconds=_SECONDS, stdin=f"{text}\n")
    if result.returncode == 0:
        return ""
    lines = [line.strip().removeprefix("/bin/bash: ") for line in result.stderr.splitlines() if line.strip()]
    return " ".join(lines)[:_SHOWN].rstrip(".") or f"exit code {result.returncode}"
