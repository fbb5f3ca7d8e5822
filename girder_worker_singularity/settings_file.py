"""Reads settings from INI files and environment variables: which one wins, and where a wrong one stands.

Knows no setting of its own. The settings are fields of pydantic models, one model per section, made with `setting`.
The files are INI without interpolation; case is kept; a list has one entry per line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from girder_worker_singularity.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import ValidationError

#: Section, name and value of an entry of a file → those of the setting that is meant.
Translation = Callable[[str, str, str], "tuple[str, str, str] | None"]
#: Names the configuration files.
FILES_VARIABLE = "GIRDER_WORKER_SLURM_CONFIG"


def setting(
    default: Any,
    description: str,
    *,
    env: tuple[str, ...] = (),
    generic: tuple[str, ...] = (),
    separators: str = "\n,",
) -> Any:
    """A field with its default, its text, the variables that set it, and what separates a list's entries."""
    extra: dict[str, Any] = {"env": list(env), "generic_env": list(generic), "separators": separators}
    return Field(default=default, description=description, json_schema_extra=extra)


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
    is_path: bool
    separators: str


def fields_of(sections: Mapping[str, type[BaseModel]]) -> Iterator[SettingField]:
    """All settings of these sections, in the order of the file."""
    for section, model in sections.items():
        for name, info in model.model_fields.items():
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
                is_table=text.startswith(("dict[str, str]", "dict[str, typing.Annotated")),
                is_path="Path" in text,
                separators=extra["separators"],
            )


def settings_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The configuration files, lowest precedence first: GIRDER_WORKER_SLURM_CONFIG, names joined by ``:``."""
    return tuple(Path(name) for name in environment.get(FILES_VARIABLE, "").split(":") if name)


@dataclass
class ReadValues:
    """What files and variables say, not yet checked, and where each value stands."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: dict[tuple[str, str], str] = field(default_factory=dict)

    def put(self, setting_field: SettingField, text: str, source: str) -> None:
        """Takes this text for the setting."""
        value: Any = text
        if setting_field.is_list:
            entries = re.split(f"[{setting_field.separators}]", text)
            value = [entry.strip() for entry in entries if entry.strip()]
        elif text == "" and setting_field.is_path:
            value = None
        self.values.setdefault(setting_field.section, {})[setting_field.name] = value
        self.origin[setting_field.section, setting_field.name] = source

    def invalid(self, error: ValidationError, *, section: str = "") -> SettingsInvalid:
        """What pydantic found (in this one section), with the place of the value."""
        problem = error.errors()[0]
        location = (section, *problem["loc"]) if section else problem["loc"]
        where = tuple(str(part) for part in location[:2])
        # An entry of a table has a line of its own.
        entry = ".".join(str(part) for part in location[1:])
        source = self.origin.get((where[0], entry)) or self.origin.get(where, "") if len(where) == 2 else ""
        name = f"[{where[0]}] {where[1]}" if len(where) == 2 else ".".join(where) or "settings"
        if len(location) > 2:
            name = f"[{where[0]}.{where[1]}] {location[2]}"
        # The input of a check of the whole is the whole, passwords included.
        got = f" (got {problem.get('input')!r})" if len(where) == 2 else ""
        said = problem["msg"].removeprefix("Value error, ")
        return SettingsInvalid(f"{source + ': ' if source else ''}{name}: {said}{got}.")


def read_values(
    sections: Mapping[str, type[BaseModel]],
    files: tuple[Path, ...],
    environment: Mapping[str, str],
    *,
    skip_other_sections: bool = False,
    translate: Translation | None = None,
) -> ReadValues:
    """What generic variables, then these files (later ones win), then the settings' own variables say.

    `translate` gives the section, name and value that an entry of a file stands for, or None if it says nothing, and may
    raise ValueError. Raises SettingsInvalid naming file, line and the allowed names when a key is unknown.
    """
    read = ReadValues()
    for one in fields_of(sections):
        for variable in one.generic_environment:
            if environment.get(variable):
                read.put(one, environment[variable], variable)
                break
    for path in files:
        _read_file(path, sections, read, skip_other_sections=skip_other_sections, translate=translate)
    for one in fields_of(sections):
        for variable in one.environment:
            if variable in environment and (environment[variable] or one.default == ""):
                read.put(one, environment[variable], variable)
                break
    return read


def generic_origins(
    sections: Mapping[str, type[BaseModel]],
    files: tuple[Path, ...],
    environment: Mapping[str, str],
    *,
    translate: Translation | None = None,
) -> dict[str, str]:
    """Which settings come from a generic variable only: setting → variable; the start warns about these."""
    read = ReadValues()
    for path in files:
        _read_file(path, sections, read, translate=translate)
    found = {}
    for one in fields_of(sections):
        if one.name in read.values.get(one.section, {}) or any(environment.get(v) for v in one.environment):
            continue
        for variable in one.generic_environment:
            if environment.get(variable):
                found[f"[{one.section}] {one.name}"] = variable
                break
    return found


def _read_file(
    path: Path,
    sections: Mapping[str, type[BaseModel]],
    read: ReadValues,
    *,
    skip_other_sections: bool = False,
    translate: Translation | None = None,
) -> None:
    """Adds one INI file's values; raises SettingsInvalid with file and line."""
    fields = {(one.section, one.name): one for one in fields_of(sections)}
    known_sections = {*sections, *(f"{one.section}.{one.name}" for one in fields.values() if one.is_table)}
    for written in _parse_ini(path):
        entry = _translated(written, path, translate)
        if entry is None:
            continue
        section, dot, table = entry.section.partition(".")
        if skip_other_sections and section not in sections:
            continue
        where = f"{path}:{entry.line}"
        if entry.section not in known_sections:
            raise SettingsInvalid(
                f"{where}: unknown section [{entry.section}]; known: {', '.join(sorted(known_sections))}."
            )
        if dot:
            read.values.setdefault(section, {}).setdefault(table, {})[entry.key] = entry.value
            read.origin[section, table] = read.origin[section, f"{table}.{entry.key}"] = where
            continue
        one = fields.get((section, entry.key))
        if one is None or one.is_table:
            known = ", ".join(sorted(f.name for f in fields.values() if f.section == section))
            raise SettingsInvalid(f"{where}: unknown setting `{entry.key}` in [{section}]; known: {known}.")
        if entry.value == "" and one.default in (None, ""):
            # As if it were not there, so that the sample file does not hide what the environment says.
            continue
        read.put(one, entry.value, where)


def _translated(entry: _IniEntry, path: Path, translate: Translation | None) -> _IniEntry | None:
    if translate is None:
        return entry
    try:
        found = translate(entry.section, entry.key, entry.value)
    except ValueError as error:
        raise SettingsInvalid(f"{path}:{entry.line}: {error}.") from error
    return None if found is None else _IniEntry(*found, entry.line)


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
        raise SettingsInvalid(f"{path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"{path}: is not UTF-8 text (byte {error.start}).") from error
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
            raise SettingsInvalid(
                f"{path}:{number}: expected `[section]` or `name = value`, got {line.partition(':')[0]!r}."
            )
    return entries
