"""What to run in which container → the arguments of `apptainer`. Pure.

Nothing here meets a shell, and no value of a variable stands in an argument list: those go to a file that only
the job's user can read (`environment_file_text`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from girder_worker_singularity.errors import ContainerError, EnvironmentInvalid
from girder_worker_singularity.run.mounts import Mount, csv_field, mount_argument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from girder_worker_singularity.image.config import ImageConfig

# What `apptainer run` starts; starting it with `exec` is the same, and then there is one form for all images.
RUNSCRIPT = "/.singularity.d/runscript"

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The script that sets the image's variables evaluates these instead of keeping them, in spite of --no-eval: a `$HOME`
# is replaced, quotes get a backslash, and a backtick loses this variable and all after it (seen: 1.4.5).
_EVALUATED = re.compile(r'[$"`\\]')
# Apptainer sets these itself.
_RESERVED = frozenset({"HOME", "PWD", "OLDPWD", "SHLVL", "_"})


@dataclass(frozen=True)
class ContainerSpec:
    """One container to be started: always with its own processes, devices, home and /tmp, never the host's."""

    sif: str
    image: ImageConfig
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Goes into the file `environment_file`, see `container_environment`."""
    environment_file: str | None = None
    scratch: str | None = None
    """A host directory for /tmp, /var/tmp and the home directory, else they are 64 MB of memory."""
    working_dir: str | None = None
    """Instead of the image's own."""
    entrypoint: tuple[str, ...] | None = None
    """Instead of the image's own."""
    gpu: Literal["nv", "rocm"] | None = None
    hostname: str | None = None
    writable_tmpfs: bool = False
    """Let the container write everywhere; what it writes is in memory and lost at the end."""
    overlay: str | None = None
    """A file system image, made by `overlay_argv`, that takes what the container writes anywhere."""
    scratch_mounts: tuple[str, ...] = ()
    """Places in the container for empty directories, which are in `scratch`."""
    fakeroot: bool = False
    """Let the container see itself as root, as under Docker."""
    network_none: bool = False

    def __post_init__(self) -> None:
        for what, path in (
            ("SIF", self.sif),
            ("scratch directory", self.scratch),
            ("working directory", self.working_dir),
            ("working directory of the image", self.image.working_dir),
            ("environment file", self.environment_file),
            ("overlay", self.overlay),
            *(("scratch mount", place) for place in self.scratch_mounts),
        ):
            if path is not None and (not path.startswith("/") or "\0" in path or "\n" in path):
                raise ContainerError(f"The {what} {path!r} is not an absolute path in one line.")
        if self.overlay is not None and ":" in self.overlay:
            # `--overlay` takes what follows for a mode, quoted or not (seen: 1.4.5).
            raise ContainerError(
                f"The overlay {self.overlay!r} has a colon in its path.",
                remedy="Move the jobs root to a directory without colons in its path.",
            )
        if self.overlay is not None and self.writable_tmpfs:
            raise ContainerError("A container has an overlay or a writable tmpfs, not both.")
        if self.hostname is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", self.hostname):
            raise ContainerError(f"{self.hostname!r} is not a host name.")
        _check_names(self.environment)


def container_arguments(spec: ContainerSpec) -> tuple[str, ...]:
    """What stands between `apptainer exec` and the user's arguments: options, SIF, entrypoint.

    Raises EnvironmentInvalid if the container needs variables and `environment_file` is not set.
    """
    if spec.environment and spec.environment_file is None:
        raise EnvironmentInvalid(
            f"The variables {', '.join(sorted(spec.environment))} have no file to be read from.",
            remedy="Write environment_file_text(container_environment(spec)) to a file of mode 0600 first.",
        )
    options = ["--containall", "--cleanenv", "--no-eval"]
    if spec.fakeroot:
        # As root the home directory is /root, where images keep things; an empty one must not hide them.
        options += ["--fakeroot", "--no-home"]
    if spec.writable_tmpfs:
        options.append("--writable-tmpfs")
    if spec.overlay is not None:
        options += ["--overlay", csv_field(spec.overlay)]
    if spec.network_none:
        options += ["--net", "--network", "none"]
    if spec.gpu is not None:
        options.append(f"--{spec.gpu}")
    if spec.hostname is not None:
        options += ["--hostname", spec.hostname]
    if spec.scratch is not None:
        options += ["--workdir", spec.scratch]
    for place in spec.scratch_mounts:
        options += ["--scratch", csv_field(place)]
    if spec.environment_file is not None:
        # The option takes a list, as one CSV record (seen: 1.4.5).
        options += ["--env-file", csv_field(spec.environment_file)]
    for mount in spec.mounts:
        options += ["--mount", mount_argument(mount)]
    # --pwd, not --cwd: the newer name is not known before Apptainer 1.3, the older one still works in 1.4.
    options += ["--pwd", spec.working_dir or spec.image.working_dir]
    return (*options, spec.sif, *container_entrypoint(spec))


def container_entrypoint(spec: ContainerSpec) -> tuple[str, ...]:
    """What is started in the container, before the user's arguments."""
    if spec.entrypoint is not None:
        return spec.entrypoint
    return (RUNSCRIPT,) if spec.image.entrypoint is None else spec.image.entrypoint


def container_argv(
    spec: ContainerSpec, *, apptainer: str = "apptainer", arguments: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The whole command line.

    Without `arguments` it ends where the user's arguments are to be appended. With none of them (an empty
    sequence) the image's own command takes their place, as in Docker.
    """
    argv = (apptainer, "--quiet", "exec", *container_arguments(spec))
    if arguments is None:
        return argv
    return (*argv, *(tuple(arguments) or default_arguments(spec)))


def default_arguments(spec: ContainerSpec) -> tuple[str, ...]:
    """What follows the entrypoint when the user gives no arguments: the image's command, unless the task names a program."""
    return () if spec.entrypoint else spec.image.command


def overlay_argv(
    path: str, size_mib: int, *, fakeroot: bool, apptainer: str = "apptainer"
) -> tuple[str, ...]:
    """The command that makes an empty overlay; it takes room on disk only as it is written to."""
    # Without its own --fakeroot the directories in it belong to the user, and `root` cannot write there.
    as_root = ("--fakeroot",) if fakeroot else ()
    return (apptainer, "--quiet", "overlay", "create", *as_root, "--sparse", "--size", str(size_mib), path)


def container_environment(spec: ContainerSpec) -> dict[str, str]:
    """The variables that the environment file must set.

    Those of the spec; and all of the image's as soon as Apptainer itself would not set them as the image wrote them.
    """
    from_image = dict(pair.partition("=")[::2] for pair in spec.image.environment)
    # It writes what cannot be printed as `\\n`, `\\t` or `\\u00a0`, and the container gets these as they stand (seen: 1.4.5).
    if not any(_EVALUATED.search(value) or not value.isprintable() for value in from_image.values()):
        return dict(spec.environment)
    valid = {
        name: from_image[name]
        for name in from_image
        if _VARIABLE_NAME.fullmatch(name) and name not in _RESERVED
    }
    return {**valid, **spec.environment}


def passable_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables that Apptainer can hand to a container, and the names of the others.

    A name such as `a.b`, which Docker takes, ends Apptainer or is dropped with a warning, however it is given; `HOME`
    and the like it sets itself (seen: 1.4.5).
    """
    passed = {
        name: value
        for name, value in environment.items()
        if _VARIABLE_NAME.fullmatch(name) and name not in _RESERVED
    }
    return passed, tuple(sorted(environment.keys() - passed.keys()))


def environment_file_text(environment: Mapping[str, str]) -> str:
    """The text of an `--env-file` that sets exactly these variables, line breaks and quotes included.

    Apptainer reads the file as a shell would, so every value stands in double quotes with the four characters
    escaped that mean something there. The file holds secrets: give it mode 0600.
    """
    _check_names(environment)
    return "".join(f"{name}={_quoted(value)}\n" for name, value in environment.items())


def _check_names(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        if not _VARIABLE_NAME.fullmatch(name):
            raise EnvironmentInvalid(f"{name!r} is not the name of a variable.")
        if "\0" in value:
            raise EnvironmentInvalid(f"The value of {name} holds a NUL.")


def _quoted(value: str) -> str:
    escaped = re.sub(r'([\\"$`])', r"\\\1", value)
    return f'"{escaped}"'
