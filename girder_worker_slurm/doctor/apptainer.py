"""Apptainer on this machine, tried with a container of nothing but empty directories.

The tiny SIF needs no registry and no image: the host's own programs are mounted into it. Starting it takes what
every job takes: a user namespace or the setuid helper, a mount of a SIF, bind mounts.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_slurm.doctor.directories import judge_directory, look_at
from girder_worker_slurm.doctor.finding import fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from girder_worker_singularity.command_runner import CommandResult, CommandRunner
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.settings import Settings

PROGRAM = "Apptainer"
VERSION = "Apptainer version"
CONVERSION = "image conversion"
CONTAINER = "container"
SIF_DIRECTORY = "SIF directory"

#: What the tiny SIF consists of, and what of the host is mounted into it.
_EMPTY = ("bin", "usr", "lib", "lib64", "etc", "proc", "sys", "dev", "tmp", "var/tmp", "root", "home")
HOST_DIRECTORIES = ("/usr", "/bin", "/lib", "/lib64")
#: As for every job; see girder_worker_singularity/run/container.py.
EXEC_OPTIONS = ("--quiet", "exec", "--containall", "--cleanenv", "--no-eval")
_TIMEOUT_SECONDS = 120.0
#: Apptainer colours its errors, into a pipe as well.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ALLOW = (
    "Allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone) and /dev/fuse, or"
    " install Apptainer's setuid part."
)
_LET_IN = "Let this user enter that directory, and each one above it."


class TinySifNotMade(Exception):
    """`apptainer build` refused."""


@dataclass(frozen=True)
class Version:
    """Which of the two programs, and its number."""

    program: str
    number: tuple[int, int]
    text: str


def check_program(program: str) -> Iterator[Finding]:
    """Whether the program is here; does not start it."""
    path = shutil.which(program)
    if path is None:
        yield fail(
            PROGRAM,
            f"{program} is not on this machine.",
            "Install Apptainer 1.2 or later here, or set `apptainer` in [singularity] to its absolute path.",
        )
    else:
        yield ok(PROGRAM, f"{path} is here.")


def check_version(program: str, runner: CommandRunner) -> Iterator[Finding]:
    """Whether it is new enough."""
    try:
        answer = runner.run([program, "--version"], timeout_seconds=_TIMEOUT_SECONDS)
    except CommandError as error:
        yield fail(VERSION, str(error), "Reinstall it, or set `apptainer` in [singularity].")
        return
    yield from judge_version(VERSION, answer.stdout)


def parse_version(text: str) -> Version | None:
    """The version in `apptainer version 1.4.5`, `singularity-ce version 4.1.0-jammy`."""
    found = re.search(r"(apptainer|singularity)\S*\s+version\s+((\d+)\.(\d+)\S*)", text)
    return Version(found[1], (int(found[3]), int(found[4])), found[2]) if found else None


def judge_version(check: str, text: str, *, where: str = "") -> Iterator[Finding]:
    """What the answer to `--version` means."""
    version = parse_version(text)
    oldest = {"apptainer": (1, 1), "singularity": (3, 10)}
    wanted = {"apptainer": (1, 2), "singularity": (4, 0)}
    if version is None:
        yield warn(
            check,
            f"It calls itself {text.strip()[:80]!r}{where}.",
            "Use Apptainer 1.2 or later, or SingularityCE 4.",
        )
        return
    name = f"{version.program.capitalize()} {version.text}{where}"
    if version.number < oldest[version.program]:
        yield fail(check, f"{name} is too old.", "Install Apptainer 1.2 or later.")
    elif version.number < wanted[version.program]:
        yield warn(
            check, f"{name} is older than what was tried.", "Use Apptainer 1.2 or later, or SingularityCE 4."
        )
    else:
        yield ok(check, f"{name}.")


def check_container(program: str, runner: CommandRunner, scratch: Path) -> Iterator[Finding]:
    """Makes a SIF and starts a container as this user."""
    try:
        with tempfile.TemporaryDirectory(prefix="doctor-", dir=scratch) as directory:
            sif = make_tiny_sif(program, runner, Path(directory))
            # A job does not start where this was called, which may be a directory that this user cannot enter.
            answer = runner.run(
                tiny_container(program, sif), timeout_seconds=_TIMEOUT_SECONDS, cwd=Path(directory)
            )
    except TinySifNotMade as error:
        yield fail(
            CONTAINER,
            f"No SIF can be made here: {error}.",
            "Install squashfs-tools beside Apptainer; `apptainer build` must work for this user.",
        )
        return
    except (CommandError, OSError) as error:
        yield fail(CONTAINER, str(error), "Look whether this user can start `apptainer exec` by hand.")
        return
    yield from judge_container(CONTAINER, answer.returncode, answer.stderr, where="here")


def judge_container(check: str, returncode: int, words: str, *, where: str) -> Iterator[Finding]:
    """Whether a container ran."""
    if returncode == 0:
        yield ok(check, f"This user can start containers {where}.")
        return
    lines = (line.strip() for line in _COLOUR.sub("", words).splitlines())
    said = " ".join(line for line in lines if line)[-400:].rstrip(".")
    # Apptainer 1.4.5: can't change directory to /home/pat/site: permission denied
    remedy = _LET_IN if "change directory" in said or "chdir" in said else _ALLOW
    yield fail(check, f"A container cannot be started {where}: {said or f'exit code {returncode}'}.", remedy)


def make_tiny_sif(program: str, runner: CommandRunner, directory: Path) -> Path:
    """A SIF of empty directories; raises TinySifNotMade, or CommandError."""
    box, sif = directory / "box", directory / "doctor.sif"
    for name in _EMPTY:
        (box / name).mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **{
            f"{prefix}_{name}": str(directory)
            for prefix in ("APPTAINER", "SINGULARITY")
            for name in ("TMPDIR", "CACHEDIR")
        },
    }
    answer = runner.run(
        [program, "--quiet", "build", "--force", str(sif), str(box)],
        timeout_seconds=_TIMEOUT_SECONDS,
        env=environment,
        cwd=directory,
    )
    shutil.rmtree(box, ignore_errors=True)
    if answer.returncode != 0 or not sif.exists():
        raise TinySifNotMade(_last_words(answer))
    return sif


def tiny_container(program: str, sif: Path) -> list[str]:
    """The command that starts the tiny SIF with this host's `true`."""
    mounts = [
        part
        for name in HOST_DIRECTORIES
        if Path(name).is_dir()
        for part in ("--mount", f"type=bind,src={name},dst={name},ro")
    ]
    return [program, *EXEC_OPTIONS, *mounts, str(sif), "/bin/true"]


def check_sif_directory(settings: Settings, *, make: bool = False) -> Iterator[Finding]:
    """Whether SIFs can be kept."""
    facts = look_at(settings.sif_image_path, make=make)
    yield from judge_directory(SIF_DIRECTORY, "`sif_image_path` in [singularity]", facts, private=False)


def check_conversion(settings: Settings) -> Iterator[Finding]:
    """Whether a conversion would start: space, and the directories that are set for it."""
    store, needed = look_at(settings.sif_image_path), settings.singularity.min_free_bytes
    if store.free_bytes < needed:
        yield fail(
            CONVERSION,
            f"{store.path} has {store.free_bytes / 1e9:.1f} GB free, and none starts below {needed / 1e9:.1f} GB.",
            "Remove SIFs that are no longer used, or change `sif_image_path` or `min_free_bytes` in [singularity].",
        )
    for name, path in (
        ("tmp_dir", settings.singularity.tmp_dir),
        ("cache_dir", settings.singularity.cache_dir),
    ):
        facts = look_at(path) if path is not None else None
        if facts is not None and facts.refusal:
            yield fail(
                CONVERSION,
                f"{path} cannot be written: {facts.refusal}.",
                f"Set `{name}` in [singularity] to a directory that this user can write, or leave it empty.",
            )


def _last_words(answer: CommandResult) -> str:
    lines = [line.strip() for line in (answer.stderr or answer.stdout).splitlines() if line.strip()]
    return (" ".join(lines[-2:]) or f"exit code {answer.returncode}").rstrip(".")
