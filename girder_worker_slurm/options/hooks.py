"""What a site has done on the node before and after the container: its own lines of bash, and srun. Pure.

These lines come from the site's configuration alone. Nothing of a user gets into them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from girder_worker_slurm.options.requests import HOOKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Variables of the job script, which a site's own would take away.
_SCRIPT_VARIABLES = (
    "arguments", "attempt", "begun", "bind", "cause", "child", "code", "container", "gpu_variables", "host", "interrupted",
    "job_variables", "log", "logged", "make_overlay", "mine", "nonce", "outcome", "overlay", "run", "script_itself", "signal",
    "size", "spool", "thread_variables", "told", "token",
)  # fmt: skip


@dataclass(frozen=True)
class SrunRules:
    """How srun starts the container, if it does."""

    use: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    append: str = ""
    """A command line between srun and the container's own, such as a profiler's."""


@dataclass(frozen=True)
class JobHooks:
    """What is done around the container."""

    login_shell: bool = False
    bashrc: str = ""
    modules: tuple[str, ...] = ()
    conda_env: str = ""
    environment_file: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    prerun: tuple[str, ...] = ()
    postrun: tuple[str, ...] = ()
    srun: SrunRules = field(default_factory=SrunRules)

    def with_lines(self, lines: Sequence[tuple[str, str]]) -> JobHooks:
        """These hooks and those of a profile, which come after them before the container, and before them after it."""
        more = {kind: tuple(text for name, text in lines if name == kind) for kind in HOOKS}
        return replace(
            self,
            modules=(*self.modules, *more["module"]),
            prerun=(*self.prerun, *more["prerun"]),
            postrun=(*more["postrun"], *self.postrun),
        )


def prerun_lines(hooks: JobHooks) -> tuple[str, ...]:
    """The lines of bash before the container, in the order in which they build on each other."""
    lines = []
    if hooks.login_shell:
        lines.append(". /etc/profile")
    if hooks.bashrc:
        lines.append(f". {_path(hooks.bashrc)}")
    lines += [f"module load {shlex.quote(name)}" for name in hooks.modules]
    if hooks.conda_env:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(hooks.conda_env)}"]
    if hooks.environment_file:
        lines.append(f"set -a; . {_path(hooks.environment_file)}; set +a")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in hooks.variables.items()]
    return (*lines, *hooks.prerun)


def launcher_lines(srun: SrunRules) -> tuple[str, ...]:
    """What stands in front of the container's own command line, a piece a line; nothing without srun."""
    if not srun.use:
        return ()
    words = ["srun"]
    for name, value in srun.options.items():
        if len(name) == 1:
            words += [f"-{name}", *([value] if value else [])]
        else:
            words.append(f"--{name}={value}" if value else f"--{name}")
    pieces = [words, *([shlex.split(srun.append)] if srun.append.strip() else [])]
    return tuple(shlex.join(piece) for piece in pieces)


def check_hooks(hooks: JobHooks) -> None:
    """Raises ValueError naming what cannot stand in a script."""
    for name in hooks.variables:
        if not _NAME.fullmatch(name):
            msg = f"`{name}` is no name of a variable"
            raise ValueError(msg)
        if name in _SCRIPT_VARIABLES:
            msg = f"`{name}` is no name of a variable that is free: the job script has one of that name"
            raise ValueError(msg)
    for name in hooks.srun.options:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            msg = f"`{name}` is no option of srun"
            raise ValueError(msg)
    try:
        shlex.split(hooks.srun.append)
    except ValueError as error:
        msg = f"`srun_append` is no command line: {error}"
        raise ValueError(msg) from error


def _path(text: str) -> str:
    """A file's name, quoted, but with a leading `$HOME/` or `~/` for the job's user."""
    for start in ("$HOME/", "~/"):
        if text.startswith(start):
            return f'"$HOME"/{shlex.quote(text.removeprefix(start))}'
    return shlex.quote(text)
