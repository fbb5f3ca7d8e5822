"""All settings of the worker, declared once.

Order of precedence, highest first: environment, ``worker.local.cfg``, ``worker.dist.cfg``, the generic
variables ``TMP``, ``TMPDIR``, ``TEMP`` and ``LOGS``, the defaults below. The files are INI without
interpolation; case is kept; a list has one entry per line. ``worker.dist.cfg`` and the reference page are
generated from this module (``girder-slurm settings``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from girder_worker_slurm.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

_FROZEN = ConfigDict(extra="forbid", frozen=True)


def _setting(
    default: Any, description: str, *, env: tuple[str, ...] = (), generic: tuple[str, ...] = ()
) -> Any:
    """A field with its default, its text and the environment variables that set it."""
    extra: dict[str, Any] = {"env": list(env), "generic_env": list(generic)}
    return Field(default=default, description=description, json_schema_extra=extra)


class CelerySection(BaseModel):
    """Where the tasks come from."""

    model_config = _FROZEN

    broker: SecretStr = _setting(
        SecretStr("amqp://guest:guest@localhost/"),
        "RabbitMQ, as a Celery broker URL.",
        env=("CELERY_BROKER_URL", "GIRDER_WORKER_BROKER"),
    )
    backend: SecretStr = _setting(
        SecretStr("rpc://guest:guest@localhost/"),
        "Where Celery results go.",
        env=("CELERY_RESULT_BACKEND", "GIRDER_WORKER_BACKEND"),
    )
    queues: list[str] = _setting(
        ["celery"],
        "Queues this worker takes tasks from. Never `local`, which belongs to the worker beside Girder.",
        env=("GIRDER_WORKER_SLURM_QUEUES",),
    )
    concurrency: int = _setting(
        4,
        "Threads for tasks of other packages that run inside the worker. Slurm jobs need none.",
        env=("DSA_WORKER_CONCURRENCY",),
    )


class GirderSection(BaseModel):
    """How Girder is reached from here."""

    model_config = _FROZEN

    api_url: str = _setting(
        "",
        "Girder's API as seen from this machine, if it differs from the address in the tasks.",
        env=("GIRDER_WORKER_API_URL",),
    )
    updates_per_second: float = _setting(
        20.0, "Most log and progress updates per second, over all jobs. Final states do not wait for it."
    )
    log_interval_seconds: float = _setting(1.0, "How often a job's new log lines are sent while it writes.")
    log_limit_bytes: int = _setting(
        3_000_000, "Beyond this Girder gets head and tail of a log; the whole stays on disk."
    )
    status_check_seconds: float = _setting(
        600.0, "How often the Girder job of a silent job is looked at (cancelled or deleted meanwhile?)."
    )


class GirderWorkerSection(BaseModel):
    """The section older configurations have."""

    model_config = _FROZEN

    tmp_root: Path | None = _setting(None, "Older name of `[jobs] root`; used when that is not set.")


class JobsSection(BaseModel):
    """Where jobs live and how many there may be."""

    model_config = _FROZEN

    root: Path | None = _setting(
        None,
        "Directory of all records and run directories. Worker and compute nodes must see it under the same path.",
        env=("GIRDER_WORKER_SLURM_JOBS_ROOT",),
        generic=("TMP", "TMPDIR", "TEMP"),
    )
    logs_dir: Path | None = _setting(
        None,
        "Where the full log of each job is written. Empty: in the job's run directory.",
        env=("GIRDER_WORKER_SINGULARITY_LOGS_DIR",),
        generic=("LOGS",),
    )
    worker_id: str = _setting(
        "",
        "Name of this worker among those that share the jobs root. Empty: the host name.",
        env=("GIRDER_WORKER_SLURM_WORKER_ID",),
    )
    max_accepted: int = _setting(
        20_000, "Jobs this worker takes at most; beyond it the queue waits in RabbitMQ."
    )
    max_submitted: int = _setting(5_000, "Jobs in Slurm at most; the others wait as QUEUED in Girder.")
    keep_days: float = _setting(7.0, "Days to keep record and log of a job that ended well.")
    keep_failed_days: float = _setting(30.0, "Days to keep record and log of a job that failed.")


class SlurmSection(BaseModel):
    """How jobs are submitted."""

    model_config = _FROZEN

    partition: str = _setting(
        "", "Partition of all jobs. Empty: the cluster's default.", env=("GIRDER_WORKER_SLURM_PARTITION",)
    )
    options: dict[str, str] = _setting(
        {},
        "sbatch options of every job, `name = value`, in the section [slurm.options]; an empty value is a flag.",
    )
    submit_script: Path | None = _setting(
        None,
        "A site's own submit script: its #SBATCH lines and its body are used around the container.",
        env=("GIRDER_WORKER_SLURM_SUBMIT_SCRIPT",),
    )
    mount_prefix: str = _setting(
        "",
        "Prepended to the server's assetstore paths to find them on this cluster.",
        env=("GIRDER_WORKER_SLURM_MOUNT_PREFIX",),
    )
    direct_paths: list[str] = _setting(
        [],
        "Directories whose files may be mounted straight from the assetstore. Empty: any the job user can read.",
        env=("GW_DIRECT_PATHS",),
    )
    commands_dir: Path | None = _setting(None, "Directory of sbatch, squeue, scancel, scontrol. Empty: PATH.")
    command_timeout_seconds: float = _setting(
        180.0, "When a Slurm command is given up. sbatch itself may retry for two minutes: stay above."
    )
    commands_per_second: float = _setting(50.0, "Most Slurm commands per second, of all kinds together.")
    parallel_submits: int = _setting(4, "sbatch commands at the same time.")
    poll_seconds: float = _setting(15.0, "Shortest interval between two listings of the queue.")
    event_seconds: float = _setting(0.25, "How often the spool of job events is looked at.")
    direct_limit_seconds: float = _setting(
        30.0,
        "Time limit of runs that a form in Girder waits for (datalists); they run on the worker's own host.",
    )
    event_grace_seconds: float = _setting(
        5.0, "How long to wait for a job's own word after Slurm said it ended. 60 on a caching network mount."
    )


class SingularitySection(BaseModel):
    """How Docker images become SIFs and how containers run."""

    model_config = _FROZEN

    sif_image_path: Path | None = _setting(
        None,
        "Directory of the SIFs. Worker and compute nodes must see it. Empty: `sif` in the jobs root.",
        env=("SIF_IMAGE_PATH",),
    )
    apptainer: str = _setting(
        "apptainer",
        "The apptainer (or singularity) program, by name or absolute path, here and on the nodes.",
    )
    plain_http_registries: list[str] = _setting([], "Registries spoken to without TLS, as host:port.")
    tmp_dir: Path | None = _setting(
        None,
        "Where images are unpacked for conversion. Empty: the system's temporary directory (TMPDIR), often small.",
    )
    cache_dir: Path | None = _setting(None, "Apptainer's cache of layers. Empty: none is kept.")
    convert_timeout_seconds: float = _setting(7200.0, "When a conversion is given up.")
    min_free_bytes: int = _setting(
        2_000_000_000, "A conversion does not start with less free space than this."
    )
    prune_unused_days: float = _setting(
        0.0,
        "Remove SIFs that no job used for this many days; images that come back are converted again. 0: never.",
    )
    max_store_bytes: int = _setting(
        0,
        "Remove the SIFs that were not used for longest while all together are larger than this. 0: no limit.",
    )
    run_options: dict[str, Any] = _setting(
        {}, "Docker run options for every container, as JSON.", env=("GIRDER_WORKER_DOCKER_RUN_OPTIONS",)
    )

    @field_validator("run_options", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if isinstance(value, str):
            import json  # noqa: PLC0415 - only for this one value

            return json.loads(value) if value.strip() else {}
        return value


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


@dataclass(frozen=True)
class SettingField:
    """One setting for the reference page, the sample file and the error messages."""

    section: str
    name: str
    default: Any
    description: str
    environment: tuple[str, ...]
    generic_environment: tuple[str, ...]
    is_list: bool
    is_table: bool


def setting_fields() -> Iterator[SettingField]:
    """All settings in the order of the file."""
    for section, section_info in Settings.model_fields.items():
        model: Any = section_info.annotation
        fields: dict[str, FieldInfo] = model.model_fields
        for name, info in fields.items():
            extra: Any = info.json_schema_extra
            text = str(info.annotation)
            yield SettingField(
                section,
                name,
                info.default,
                info.description or "",
                tuple(extra["env"]),
                tuple(extra["generic_env"]),
                is_list="list[" in text,
                is_table="dict[str, str]" in text,
            )


def settings_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The configuration files, lowest precedence first: GIRDER_WORKER_SLURM_CONFIG, names joined by ``:``."""
    return tuple(Path(name) for name in environment.get("GIRDER_WORKER_SLURM_CONFIG", "").split(":") if name)


def load_settings(files: tuple[Path, ...] = (), environment: Mapping[str, str] | None = None) -> Settings:
    """The settings from these files (later ones win) and the environment (wins over all files).

    Raises SettingsInvalid naming file, line and the allowed names when a key is unknown or a value is wrong.
    """
    env = os.environ if environment is None else environment
    values: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], str] = {}
    for field in setting_fields():
        for variable in field.generic_environment:
            if env.get(variable):
                _put(values, origin, field, env[variable], variable)
                break
    for path in files:
        _read_file(path, values, origin)
    for field in setting_fields():
        for variable in field.environment:
            if variable in env and (env[variable] or field.default == ""):
                _put(values, origin, field, env[variable], variable)
                break
    try:
        return Settings(**values)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        problem = error.errors()[0]
        where = tuple(str(part) for part in problem["loc"][:2])
        source = origin.get(where, "") if len(where) == 2 else ""
        name = f"[{where[0]}] {where[1]}" if len(where) == 2 else ".".join(where) or "settings"
        # The input of a check of the whole is the whole, passwords included.
        got = f" (got {problem.get('input')!r})" if len(where) == 2 else ""
        msg = f"{source + ': ' if source else ''}{name}: {problem['msg']}{got}."
        raise SettingsInvalid(msg) from error


def generic_origins(files: tuple[Path, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """Which settings come from a generic variable only: setting → variable; the start warns about these."""
    values: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], str] = {}
    for path in files:
        _read_file(path, values, origin)
    found = {}
    for field in setting_fields():
        if field.name in values.get(field.section, {}) or any(environment.get(v) for v in field.environment):
            continue
        for variable in field.generic_environment:
            if environment.get(variable):
                found[f"[{field.section}] {field.name}"] = variable
                break
    return found


def _put(
    values: dict[str, dict[str, Any]],
    origin: dict[tuple[str, str], str],
    field: SettingField,
    text: str,
    source: str,
) -> None:
    value: Any = text
    if field.is_list:
        value = [
            entry.strip() for entry in re.split(r"[\n,:]" if field.name == "direct_paths" else r"[\n,]", text)
        ]
        value = [entry for entry in value if entry]
    elif text == "" and "Path" in str(_annotation(field)):
        value = None
    values.setdefault(field.section, {})[field.name] = value
    origin[field.section, field.name] = source


def _annotation(field: SettingField) -> Any:
    model: Any = Settings.model_fields[field.section].annotation
    return model.model_fields[field.name].annotation


def _read_file(path: Path, values: dict[str, dict[str, Any]], origin: dict[tuple[str, str], str]) -> None:
    """Adds one INI file's values; raises SettingsInvalid with file and line."""
    fields = {(field.section, field.name): field for field in setting_fields()}
    sections = {field.section for field in fields.values()} | {
        f"{field.section}.{field.name}" for field in fields.values() if field.is_table
    }
    for entry in _parse_ini(path):
        if entry.section not in sections:
            msg = f"{path}:{entry.line}: unknown section [{entry.section}]; known: {', '.join(sorted(sections))}."
            raise SettingsInvalid(msg)
        where = f"{path}:{entry.line}"
        if "." in entry.section:
            section, table = entry.section.split(".", 1)
            values.setdefault(section, {}).setdefault(table, {})[entry.key] = entry.value
            origin[section, table] = where
            continue
        field = fields.get((entry.section, entry.key))
        if field is None or field.is_table:
            known = ", ".join(sorted(f.name for f in fields.values() if f.section == entry.section))
            msg = f"{where}: unknown setting `{entry.key}` in [{entry.section}]; known: {known}."
            raise SettingsInvalid(msg)
        if entry.value == "" and field.default in (None, ""):
            # As if it were not there, so that the sample file does not hide what the environment says.
            continue
        _put(values, origin, field, entry.value, where)


@dataclass(frozen=True)
class _IniEntry:
    section: str
    key: str
    value: str
    line: int


def _parse_ini(path: Path) -> list[_IniEntry]:
    """The entries of an INI file with their line numbers, which configparser does not keep."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"{path}: {error.strerror}."
        raise SettingsInvalid(msg) from error
    entries: list[_IniEntry] = []
    section = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if raw[0].isspace() and entries and entries[-1].section == section:
            last = entries[-1]
            entries[-1] = _IniEntry(section, last.key, f"{last.value}\n{line}".strip(), last.line)
        elif line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif "=" in line and section:
            key, value = line.split("=", 1)
            entries.append(_IniEntry(section, key.strip(), value.strip(), number))
        else:
            msg = f"{path}:{number}: expected `[section]` or `name = value`, got {line.partition(':')[0]!r}."
            raise SettingsInvalid(msg)
    return entries


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
