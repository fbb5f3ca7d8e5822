"""All settings of the worker, declared once.

Order of precedence, highest first: environment, ``worker.local.cfg``, ``worker.dist.cfg``, the generic
variables ``TMP``, ``TMPDIR``, ``TEMP`` and ``LOGS``, the defaults below. The files are INI without
interpolation; case is kept; a list has one entry per line. ``worker.dist.cfg`` and the reference page are
generated from this module (``girder-slurm settings``).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from girder_worker_singularity import settings_file
from girder_worker_singularity.errors import SettingsInvalid as ContainerSettingsInvalid
from girder_worker_singularity.settings import SingularitySection
from girder_worker_singularity.settings_file import SettingField, fields_of, setting, settings_files
from girder_worker_slurm.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


__all__ = ["SettingField", "Settings", "generic_origins", "load_settings", "setting_fields", "settings_files"]

_FROZEN = ConfigDict(extra="forbid", frozen=True)


class CelerySection(BaseModel):
    """Where the tasks come from."""

    model_config = _FROZEN

    broker: SecretStr = setting(
        SecretStr("amqp://guest:guest@localhost/"),
        "RabbitMQ, as a Celery broker URL.",
        env=("CELERY_BROKER_URL", "GIRDER_WORKER_BROKER"),
    )
    backend: SecretStr = setting(
        SecretStr("rpc://guest:guest@localhost/"),
        "Where Celery results go.",
        env=("CELERY_RESULT_BACKEND", "GIRDER_WORKER_BACKEND"),
    )
    queues: list[str] = setting(
        ["celery"],
        "Queues this worker takes tasks from. Never `local`, which belongs to the worker beside Girder.",
        env=("GIRDER_WORKER_SLURM_QUEUES",),
    )
    concurrency: int = setting(
        4,
        "Threads for tasks of other packages that run inside the worker. Slurm jobs need none.",
        env=("DSA_WORKER_CONCURRENCY",),
    )


class GirderSection(BaseModel):
    """How Girder is reached from here."""

    model_config = _FROZEN

    api_url: str = setting(
        "",
        "Girder's API as seen from this machine, if it differs from the address in the tasks.",
        env=("GIRDER_WORKER_API_URL",),
    )
    updates_per_second: float = setting(
        20.0, "Most log and progress updates per second, over all jobs. Final states do not wait for it."
    )
    log_interval_seconds: float = setting(1.0, "How often a job's new log lines are sent while it writes.")
    log_limit_bytes: int = setting(
        3_000_000, "Beyond this Girder gets head and tail of a log; the whole stays on disk."
    )
    status_check_seconds: float = setting(
        600.0, "How often the Girder job of a silent job is looked at (cancelled or deleted meanwhile?)."
    )


class GirderWorkerSection(BaseModel):
    """The section older configurations have."""

    model_config = _FROZEN

    tmp_root: Path | None = setting(None, "Older name of `[jobs] root`; used when that is not set.")


class JobsSection(BaseModel):
    """Where jobs live and how many there may be."""

    model_config = _FROZEN

    root: Path | None = setting(
        None,
        "Directory of all records and run directories. Worker and compute nodes must see it under the same path.",
        env=("GIRDER_WORKER_SLURM_JOBS_ROOT",),
        generic=("TMP", "TMPDIR", "TEMP"),
    )
    logs_dir: Path | None = setting(
        None,
        "Where the full log of each job is written. Empty: in the job's run directory.",
        env=("GIRDER_WORKER_SINGULARITY_LOGS_DIR",),
        generic=("LOGS",),
    )
    worker_id: str = setting(
        "",
        "Name of this worker among those that share the jobs root. Empty: the host name.",
        env=("GIRDER_WORKER_SLURM_WORKER_ID",),
    )
    max_accepted: int = setting(
        20_000, "Jobs this worker takes at most; beyond it the queue waits in RabbitMQ."
    )
    max_submitted: int = setting(5_000, "Jobs in Slurm at most; the others wait as QUEUED in Girder.")
    keep_days: float = setting(7.0, "Days to keep record and log of a job that ended well.")
    keep_failed_days: float = setting(30.0, "Days to keep record and log of a job that failed.")


class SlurmSection(BaseModel):
    """How jobs are submitted."""

    model_config = _FROZEN

    partition: str = setting(
        "", "Partition of all jobs. Empty: the cluster's default.", env=("GIRDER_WORKER_SLURM_PARTITION",)
    )
    options: dict[str, str] = setting(
        {},
        "sbatch options of every job, `name = value`, in the section [slurm.options]; an empty value is a flag.",
    )
    submit_script: Path | None = setting(
        None,
        "A site's own submit script: its #SBATCH lines and its body are used around the container.",
        env=("GIRDER_WORKER_SLURM_SUBMIT_SCRIPT",),
    )
    mount_prefix: str = setting(
        "",
        "Prepended to the server's assetstore paths to find them on this cluster.",
        env=("GIRDER_WORKER_SLURM_MOUNT_PREFIX",),
    )
    direct_paths: list[str] = setting(
        [],
        "Directories whose files may be mounted straight from the assetstore. Empty: any the job user can read.",
        env=("GW_DIRECT_PATHS",),
        separators="\\n,:",
    )
    commands_dir: Path | None = setting(None, "Directory of sbatch, squeue, scancel, scontrol. Empty: PATH.")
    command_timeout_seconds: float = setting(
        180.0, "When a Slurm command is given up. sbatch itself may retry for two minutes: stay above."
    )
    commands_per_second: float = setting(50.0, "Most Slurm commands per second, of all kinds together.")
    parallel_submits: int = setting(4, "sbatch commands at the same time.")
    poll_seconds: float = setting(15.0, "Shortest interval between two listings of the queue.")
    event_seconds: float = setting(0.25, "How often the spool of job events is looked at.")
    direct_limit_seconds: float = setting(
        30.0,
        "Time limit of runs that a form in Girder waits for (datalists); they run on the worker's own host.",
    )
    convert_images: bool = setting(
        False,
        "Convert images in Slurm jobs, for login nodes that forbid long work, instead of on the worker's machine.",
    )
    convert_options: dict[str, str] = setting(
        {},
        "sbatch options of such a conversion, in the section [slurm.convert_options], besides those of every job.",
    )
    event_grace_seconds: float = setting(
        5.0, "How long to wait for a job's own word after Slurm said it ended. 60 on a caching network mount."
    )


class Settings(BaseSettings):
    """The worker's settings, checked; sections as in ``worker.dist.cfg``."""

    model_config = ConfigDict(extra="forbid", frozen=True)  # type: ignore[assignment]

    celery: CelerySection = CelerySection()
    girder: GirderSection = GirderSection()
    girder_worker: GirderWorkerSection = GirderWorkerSection()
    jobs: JobsSection = JobsSection()
    slurm: SlurmSection = SlurmSection()
    singularity: SingularitySection = SingularitySection()

    @model_validator(mode="after")
    def _local_is_not_ours(self) -> Settings:
        if not self.celery.queues or "local" in self.celery.queues:
            msg = "[celery] queues must name one or more queues, and not `local`, which Girder's own worker serves"
            raise ValueError(msg)
        return self

    @property
    def jobs_root(self) -> Path:
        """The directory of all jobs; raises SettingsInvalid when nothing sets it."""
        root = self.jobs.root or self.girder_worker.tmp_root
        if root is None:
            msg = (
                "No jobs root: set `root` in [jobs] of worker.local.cfg (or GIRDER_WORKER_SLURM_JOBS_ROOT) to a"
                " directory that this machine and the compute nodes share. A file counts only if GIRDER_WORKER_SLURM_CONFIG names"
                " it, as worker/run.sh does."
            )
            raise SettingsInvalid(msg)
        if not root.is_absolute():
            msg = f"The jobs root must be an absolute path, not {root}: set `root` in [jobs]."
            raise SettingsInvalid(msg)
        return root

    @property
    def sif_image_path(self) -> Path:
        """The directory of the SIFs."""
        return self.singularity.sif_image_path or self.jobs_root / "sif"

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` hands in; never the process environment behind its back."""
        del settings_cls
        return (init_settings,)


def _sections() -> dict[str, type[BaseModel]]:
    models: dict[str, Any] = {name: info.annotation for name, info in Settings.model_fields.items()}
    return models


def setting_fields() -> Iterator[SettingField]:
    """All settings in the order of the file."""
    return fields_of(_sections())


def load_settings(files: tuple[Path, ...] = (), environment: Mapping[str, str] | None = None) -> Settings:
    """The settings from these files (later ones win) and the environment (wins over all files).

    Raises SettingsInvalid naming file, line and the allowed names when a key is unknown or a value is wrong.
    """
    env = os.environ if environment is None else environment
    with _told_as_ours():
        read = settings_file.read_values(_sections(), files, env)
        try:
            return Settings(**read.values)  # type: ignore[arg-type]  # pydantic checks them
        except ValidationError as error:
            raise read.invalid(error) from error


def generic_origins(files: tuple[Path, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """Which settings come from a generic variable only: setting → variable; the start warns about these."""
    with _told_as_ours():
        return settings_file.generic_origins(_sections(), files, environment)


@contextlib.contextmanager
def _told_as_ours() -> Iterator[None]:
    try:
        yield
    except ContainerSettingsInvalid as error:
        raise SettingsInvalid(error.what) from error


def render_sample() -> str:
    """The text of ``worker.dist.cfg``: every setting with its default and its comment."""
    lines = [
        "# Settings of the Slurm worker, all at their defaults. Generated by `girder-slurm settings`; do not edit:",
        "# put what differs into worker.local.cfg beside this file. Environment variables win over both.",
    ]
    section = ""
    tables: list[SettingField] = []
    for field in setting_fields():
        if field.section != section:
            lines += _render_tables(tables)
            tables = []
            section = field.section
            lines += ["", f"[{section}]"]
        if field.is_table:
            tables.append(field)
            continue
        lines.append(f"# {field.description}")
        if field.environment or field.generic_environment:
            variables = ", ".join(
                (*field.environment, *(f"{v} (if nothing else)" for v in field.generic_environment))
            )
            lines.append(f"# Environment: {variables}")
        lines.append(f"{field.name} = {_default_text(field)}".rstrip())
    lines += _render_tables(tables)
    return "\n".join(lines) + "\n"


def _render_tables(tables: list[SettingField]) -> list[str]:
    lines = []
    for field in tables:
        lines += ["", f"[{field.section}.{field.name}]", f"# {field.description}"]
    return lines


def _default_text(field: SettingField) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if value is None or value == {}:
        return ""
    if isinstance(value, list):
        return "\n    ".join(value)
    return str(value)


def render_reference() -> str:
    """The settings reference page in Markdown."""
    lines = ["# Settings", "", "Generated by `girder-slurm settings --reference`.", ""]
    section = ""
    for field in setting_fields():
        if field.section != section:
            section = field.section
            lines += [f"## [{section}]", ""]
        variables = ", ".join(f"`{v}`" for v in field.environment)
        generic = ", ".join(f"`{v}`" for v in field.generic_environment)
        lines.append(f"### {field.name}")
        lines.append("")
        lines.append(field.description)
        lines.append("")
        lines.append(f"- Default: `{_default_text(field)}`" if _default_text(field) else "- Default: empty")
        if variables:
            lines.append(f"- Environment: {variables}")
        if generic:
            lines.append(f"- If nothing else sets it: {generic}")
        lines.append("")
    return "\n".join(lines)
