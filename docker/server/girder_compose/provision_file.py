"""PURE: the provisioning file → what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jsonschema
import yaml

from .errors import ProvisionFileError

_TEXT = {"type": "string", "minLength": 1}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "admin": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "first_name": _TEXT,
                "last_name": _TEXT,
                "email": {**_TEXT, "pattern": "^[^@ ]+@[^@ ]+$"},
            },
        },
        "assetstore": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "directory"],
            "properties": {"name": _TEXT, "directory": {**_TEXT, "pattern": "^/"}},
        },
        "task_folder": {
            "type": "object",
            "additionalProperties": False,
            "required": ["collection", "folder"],
            "properties": {"collection": _TEXT, "folder": _TEXT, "public": {"type": "boolean"}},
        },
        "settings": {"type": "object", "propertyNames": {"pattern": r"^[a-z0-9_]+\.[a-z0-9_.]+$"}},
        "images": {"type": "array", "items": {**_TEXT, "pattern": r"^\S+$"}, "uniqueItems": True},
    },
}


@dataclass(frozen=True)
class Wanted:
    """What Girder should have. None: left as it is."""

    admin: dict[str, str]
    assetstore: dict[str, str] | None
    task_folder: dict[str, Any] | None
    settings: dict[str, Any]
    images: tuple[str, ...]


def parse(text: str, name: str) -> Wanted:
    """The content of a provisioning file; raises ProvisionFileError that says where it is wrong."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ProvisionFileError(f"{name} is not YAML: {error}") from error
    found = {} if found is None else found
    problems = sorted(
        jsonschema.Draft202012Validator(SCHEMA).iter_errors(found),
        key=lambda error: list(map(str, error.absolute_path)),
    )
    if problems:
        said = "\n".join(f"  {_place(problem)}: {_what(problem)}" for problem in problems)
        raise ProvisionFileError(f"{name} is not understood, nothing was changed:\n{said}")
    return Wanted(
        admin={
            "first_name": "Girder",
            "last_name": "Administrator",
            "email": "admin@example.com",
            **(found.get("admin") or {}),
        },
        assetstore=found.get("assetstore"),
        task_folder=found.get("task_folder"),
        settings=found.get("settings") or {},
        images=tuple(full_name(image) for image in found.get("images") or ()),
    )


def full_name(image: str) -> str:
    """An image's name with its tag, as Girder keeps it."""
    if "@" in image or ":" in image.rpartition("/")[2]:
        return image
    return f"{image}:latest"


def _place(problem: jsonschema.ValidationError) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.absolute_path)
    return path.lstrip(".") or "the file"


def _what(problem: jsonschema.ValidationError) -> str:
    schema: dict[str, Any] = problem.schema
    if problem.validator == "additionalProperties":
        unknown = sorted(set(problem.instance) - set(schema["properties"]))
        return f"unknown {', '.join(f'`{key}`' for key in unknown)}; known are {', '.join(sorted(schema['properties']))}"
    if problem.validator == "required":
        missing = [key for key in schema["required"] if key not in problem.instance]
        return f"lacks {', '.join(f'`{key}`' for key in missing)}"
    if problem.validator == "type":
        wanted = {
            "object": "a mapping `name: value`",
            "array": "a list, one `- entry` per line",
            "string": "text",
            "boolean": "true or false",
        }
        return f"has to be {wanted[schema['type']]}, not {problem.instance!r}"
    return str(problem.message)
