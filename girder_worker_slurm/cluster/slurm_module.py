"""The environment of Slurm's commands where a module brings them: a site's `module load slurm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_slurm.errors import StartRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_singularity.command_runner import CommandRunner

_SECONDS = 60.0
_MARK = "=== environment ==="
#: The module's name is an argument, not part of the text. `module` may print anything on either output.
_LOAD = f"module load \"$1\" >&2 || exit; printf '\\n%s\\n' '{_MARK}'; exec env -0"


def slurm_environment(
    module: str, runner: CommandRunner, environment: Mapping[str, str]
) -> Mapping[str, str]:
    """The variables that a login shell has after `module load`; the given ones if no module is named.

    Its PATH, as the module leaves it now, comes before the given one. Raises StartRefused.
    """
    if not module:
        return environment
    argv = ["/bin/bash", "--login", "-c", _LOAD, "load", module]
    try:
        result = runner.run(argv, timeout_seconds=_SECONDS, env=dict(environment))
    except CommandError as error:
        raise StartRefused(f"The module {module} could not be loaded: {error} {_REMEDY}") from error
    _, mark, listing = result.stdout.partition(f"\n{_MARK}\n")
    # Lmod's `module` returns 0 in some versions for a module that is not there, and says so on stderr.
    if result.returncode != 0 or not mark or result.truncated:
        said = " ".join(line.strip() for line in result.stderr.splitlines() if line.strip())[-300:]
        said = said or f"exit code {result.returncode}"
        raise StartRefused(f"The module {module} could not be loaded: {said}. {_REMEDY}")
    pairs = (entry.partition("=") for entry in listing.split("\0") if "=" in entry)
    loaded = {name: value for name, _, value in pairs}
    # A login shell begins with the system's PATH (/etc/profile) and knows nothing of the worker's own.
    path = [*loaded.get("PATH", "").split(":"), *environment.get("PATH", "").split(":")]
    return {**loaded, "PATH": ":".join(dict.fromkeys(entry for entry in path if entry))}


_REMEDY = "Correct `slurm_module` in [slurm]: `bash --login -c 'module load NAME'` has to work for this user on this machine."
