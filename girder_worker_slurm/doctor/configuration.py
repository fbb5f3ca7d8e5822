"""The configuration files and variables, before anything is done with them."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.doctor.secret_words import hiding
from girder_worker_slurm.errors import SettingsInvalid
from girder_worker_slurm.settings import generic_origins, load_settings, setting_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.settings import Settings

CHECK = "settings"


def read_settings(files: tuple[Path, ...], environment: Mapping[str, str]) -> Settings | Finding:
    """The settings, or why they cannot be used."""
    try:
        settings = load_settings(files, environment)
        settings.jobs_root  # noqa: B018 - raises when it is not set
    except (SettingsInvalid, ValueError) as error:
        return fail(
            CHECK,
            hiding(None)(str(error)),
            "Correct that line or variable; `girder-slurm settings` lists them all.",
        )
    return settings


def check_settings(files: tuple[Path, ...], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Where settings come from, and what about that is dangerous."""
    variables = [
        variable for field in setting_fields() for variable in field.environment if environment.get(variable)
    ]
    origin = [
        *(str(path) for path in files),
        *([f"the variables {', '.join(variables)}"] if variables else []),
    ]
    if files:
        yield ok(CHECK, f"Read from {', '.join(origin)}.")
    else:
        yield warn(
            CHECK,
            f"No configuration file is named; {f'only {origin[0]} count' if origin else 'all settings are defaults'}.",
            "Set GIRDER_WORKER_SLURM_CONFIG to the files that the worker is started with, unless it has none either.",
        )
    for path in files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o044 and _has_password(path.read_text(encoding="utf-8", errors="replace")):
            yield warn(
                CHECK,
                f"{path} holds a password and can be read by other users (mode {mode:04o}).",
                f"Run: chmod 600 {path}",
            )
    for setting, variable in generic_origins(files, environment).items():
        section, name = setting.split()
        yield warn(
            CHECK,
            f"{setting} comes from the generic variable {variable} ({environment[variable]}).",
            f"Set `{name}` in {section} to a directory that the compute nodes see as well.",
        )


def _has_password(text: str) -> bool:
    """Whether a file sets an address with a password other than RabbitMQ's default."""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if (
            name.strip() in ("broker", "backend")
            and ":" in value.partition("://")[2].partition("@")[0]
            and "guest:guest@" not in value
        ):
            return True
    return False
