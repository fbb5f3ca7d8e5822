"""All settings of the worker, declared once: here, and for two long sections in modules of their own.

Order of precedence, highest first: environment, ``worker.local.cfg``, ``worker.dist.cfg``, the generic
variables ``TMP``, ``TMPDIR``, ``TEMP`` and ``LOGS``, the defaults below. The files are INI without
interpolation; case is kept; a list has one entry per line. ``worker.dist.cfg`` and the reference page are
generated from them (``girder-slurm settings``).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from girder_worker_singularity import settings_file
from girder_worker_singularity.errors import SettingsInvalid as ContainerSettingsInvalid
from girder_worker_singularity.settings import SingularitySection
from girder_worker_singularity.settings_file import SettingField, fields_of, setting, settings_files
from girder_worker_slurm.errors import SettingsInvalid
from girder_worker_slurm.options import covalent_names
from girder_worker_slurm.slurm_settings import SlurmSection

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
    broker_ca: Path | None = setting(
        None,
        "File with the certificates (PEM) of the authorities of which RabbitMQ's must come, with `broker = amqps://...`. Empty: those that the"
        " system trusts.",
        env=("GIRDER_WORKER_BROKER_CA",),
    )
    broker_cert: Path | None = setting(
        None,
        "File with the worker's own certificate (PEM), for a RabbitMQ that asks for one, and behind it those of the authorities"
        " between, if there are any. User and password are needed as well.",
        env=("GIRDER_WORKER_BROKER_CERT",),
    )
    broker_key: Path | None = setting(
        None,
        "File of mode 0600 with the key (PEM) of `broker_cert`, without a passphrase. Empty: the key is in the file `broker_cert`.",
        env=("GIRDER_WORKER_BROKER_KEY",),
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
    allow_classes: list[str] = setting(
        [],
        "Classes that tasks may bring besides the transforms of Girder Worker and Slicer CLI Web, by their whole names, one a line:"
        " their code runs in the worker.",
    )

    @model_validator(mode="after")
    def _files_of_tls_are_used(self) -> CelerySection:
        if self.broker_key and not self.broker_cert:
            msg = "broker_key needs `broker_cert`: whose key is it"
            raise ValueError(msg)
        if (self.broker_ca or self.broker_cert) and not self.broker.get_secret_value().lower().startswith(
            "amqps:"
        ):
            msg = "broker_ca and broker_cert need `broker = amqps://...`: with amqp:// the password goes unprotected"
            raise ValueError(msg)
        return self


class GirderSection(BaseModel):
    """How Girder is reached from here."""

    model_config = _FROZEN

    api_url: str = setting(
        "",
        "Girder's API as seen from this machine, if it differs from the address in the tasks.",
        env=("GIRDER_WORKER_API_URL",),
    )
    updates_per_second: PositiveFloat = setting(
        20.0, "Most log and progress updates per second, over all jobs. Final states do not wait for it."
    )
    log_interval_seconds: NonNegativeFloat = setting(
        1.0, "How often a job's new log lines are sent while it writes."
    )
    log_limit_bytes: NonNegativeInt = setting(
        3_000_000, "Beyond this Girder gets head and tail of a log; the whole stays on disk."
    )
    status_check_seconds: NonNegativeFloat = setting(
        600.0, "How often the Girder job of a silent job is looked at (cancelled or deleted meanwhile?)."
    )

    prune_key_file: Path | None = setting(
        None,
        "File of mode 0600 with an API key of an administrator of the Girder at `api_url`. With it the SIFs of images that"
        " were ingested here and have been removed from that Girder are removed, once an hour. Empty: never.",
    )

    @model_validator(mode="after")
    def _somebody_to_ask(self) -> GirderSection:
        if self.prune_key_file is not None and not self.api_url:
            msg = "prune_key_file needs `api_url`: which Girder is to be asked"
            raise ValueError(msg)
        return self


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
    max_accepted: PositiveInt = setting(
        20_000, "Jobs this worker takes at most; beyond it the queue waits in RabbitMQ."
    )
    max_submitted: PositiveInt = setting(5_000, "Jobs in Slurm at most; the others wait as QUEUED in Girder.")
    archive_new_files: list[str] = setting(
        [],
        "Images whose jobs' new files are uploaded besides the declared outputs, as one archive: patterns, each of images,"
        " or that and, after a blank, one of CLIs.",
    )
    archive_limit_bytes: NonNegativeInt = setting(
        2 * 1024**3, "The most that such an archive may hold; what is more is not uploaded."
    )
    max_submitted_per_user: NonNegativeInt = setting(
        0,
        "Jobs of one Girder user in Slurm at most. 0: as many as `max_submitted` allows. In any case users take turns.",
    )
    keep_days: NonNegativeFloat = setting(7.0, "Days to keep record and log of a job that ended well.")
    keep_failed_days: NonNegativeFloat = setting(
        30.0, "Days to keep record and log of a job that failed, and outputs that Girder did not take."
    )


class UsersSection(BaseModel):
    """Who may run jobs, and what theirs get."""

    model_config = _FROZEN

    mapping_file: Path | None = setting(
        None,
        "A YAML file that says which Girder users and groups get which account, QOS, partition, options and limits, or the"
        " users_id_mapping_configuration.yaml of JARVICE. Empty: all users are alike. Read when the worker starts.",
        env=("GIRDER_WORKER_SLURM_USERS",),
    )
    unmapped: Literal["refuse", "default"] = setting(
        "refuse",
        "What becomes of a job of a user whom that file does not have, or about whom Girder tells too little: `refuse` ends it"
        " at once; `default` treats it as any job without such a file.",
    )
    unix_users: list[str] = setting(
        [],
        "Unix users whom jobs may run as, if that file says so (`unix_user`, `mapped_user`): names, or patterns such as *."
        " Never root. The worker's own needs no mention.",
        separators="\\n, ",
    )
    minimum_uid: NonNegativeInt = setting(
        1000, "Users with a lower number are allowed by their name alone, not by a pattern."
    )
    run_root: str = setting(
        "",
        "Where the run directories of such a user are: a path with {user} for the name, on a file system that the nodes see,"
        " such as /scratch/{user}/girder. It is made as that user if it is missing, and closed to all others.",
    )
    files_program: str = setting(
        "",
        "`girder-slurm-files`, where such users can run it. Empty: beside the worker's own `girder-slurm`.",
    )

    @field_validator("run_root")
    @classmethod
    def _one_for_each_user(cls, value: str) -> str:
        if value and not (value.startswith("/") and "{user}" in value):
            msg = "run_root is an absolute path with {user} in it"
            raise ValueError(msg)
        return value


class Settings(BaseSettings):
    """The worker's settings, checked; sections as in ``worker.dist.cfg``."""

    model_config = ConfigDict(extra="forbid", frozen=True)  # type: ignore[assignment]

    celery: CelerySection = CelerySection()
    girder: GirderSection = GirderSection()
    girder_worker: GirderWorkerSection = GirderWorkerSection()
    jobs: JobsSection = JobsSection()
    slurm: SlurmSection = SlurmSection()
    users: UsersSection = UsersSection()
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
        read = settings_file.read_values(_sections(), files, env, translate=covalent_names.translated)
        try:
            return Settings(**read.values)  # type: ignore[arg-type]  # pydantic checks them
        except ValidationError as error:
            raise read.invalid(error) from error


def generic_origins(files: tuple[Path, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """Which settings come from a generic variable only: setting → variable; the start warns about these."""
    with _told_as_ours():
        return settings_file.generic_origins(
            _sections(), files, environment, translate=covalent_names.translated
        )


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
        "# A remark has a line of its own. A list has one entry a line, indented, or commas between them.",
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


#: How the files are read, for those who write one.
_FORM = (
    "The files are those that `GIRDER_WORKER_SLURM_CONFIG` names, separated by colons; a later one wins, and the environment",
    "wins over all. They are read when the worker starts. Each is made of sections and lines `name = value`:",
    "",
    "- Names are case-sensitive, and `%` is an ordinary character. An unknown name stops the start.",
    "- A comment has a line of its own that begins with `#`. Behind a value it would be part of the value.",
    "- A list has one entry a line, indented, or all entries in one line with commas between them. Commands for the shell",
    "  are one a line only.",
    "- A section with a dot in its name, such as `[slurm.options]`, is a table of names that you choose, or that its text names.",
)


def render_reference() -> str:
    """The settings reference page in Markdown."""
    lines = ["# Settings", "", "Generated by `girder-slurm settings --reference`.", "", *_FORM, ""]
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
