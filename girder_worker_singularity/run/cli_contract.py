"""Asking an image for its CLIs, the way the Slicer CLI plugin of Girder does.

`image --list_cli` prints JSON: name → {type, desc-type, ...}; `image <name> --xml` prints a description.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.command_runner import (
    CommandNotFound,
    CommandResult,
    CommandRunner,
    CommandTimeout,
)
from girder_worker_singularity.errors import CliContractViolated, ContainerNotStarted, ProgramMissing
from girder_worker_singularity.run.container import (
    ContainerSpec,
    container_argv,
    container_environment,
    environment_file_text,
)
from girder_worker_singularity.run.image_rules import ImageRule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from girder_worker_singularity.sif.shelf import Sif

DESCRIPTION_TYPES = ("xml", "json", "yaml")
DEFAULT_TYPE = "xml"
MOST_DESCRIPTION_BYTES = 16_000_000
"""What Girder's database can hold of one description: a document of at most 16 MiB, other things included."""
_SHOWN_CHARACTERS = 500
_MOST_BRACKETS = 1000
# Searched for apart: one expression from the first to the last takes minutes on a text of nothing but `<`.
_XML_START = re.compile(r"<executable\b")
_XML_END = re.compile(r"</executable\s{0,100}>")
# The outermost keys of a description in YAML, or the mark that begins a document.
_YAML_START = re.compile(
    r"^(?:---(?:\s.*)?|%YAML .*|(?P<quote>[\"']?)(?:category|title|description|version|documentation-url|license|"
    r"contributor|acknowledgements|parameter_groups)(?P=quote)\s*:.*)$",
    re.MULTILINE,
)
_YAML_LINE = re.compile(r"\s|-(?:\s|$)|#|[\"']?[\w.-]+[\"']?\s*:(?:\s|$)|[\]}]|\.\.\.$")
_LONGEST_NAME = 200
# Apptainer's own words, whatever the image (1.4.5: "ERROR  : Failed to create user namespace: ..."); not "refused".
_HOST_REFUSES = re.compile(
    r"^(?:\x1b\[[0-9;]{0,9}m)?"  # it colours them, into a pipe as well
    r"(?P<said>(?:ERROR|FATAL) {0,3}:[^\x1b\n]{0,500}?(?:user namespace|\b(?:squash)?fuse\b|fusermount)[^\x1b\n]{0,300})",
    re.MULTILINE,
)


@dataclass(frozen=True)
class CliDescription:
    """One CLI of an image."""

    name: str
    cli_type: str
    desc_type: str
    description: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    """What `--list_cli` says about it, and the description under the name of its type, as the stock task has it."""


def list_clis(sif: Sif, run: Callable[[Sequence[str]], CommandResult]) -> list[CliDescription]:
    """The CLIs of the image, in its own order; CliContractViolated says which call it did not answer.

    Raises ContainerNotStarted when this host can start no container at all. `run` runs the image with the arguments it is given.
    """
    image = str(sif.reference)
    listed = _parse_list(image, _answer(image, run, ["--list_cli"]))
    return [_describe(image, name, spec, run) for name, spec in listed.items()]


def run_on_this_host(
    sif: Sif,
    arguments: Sequence[str],
    *,
    runner: CommandRunner,
    scratch: Path,
    timeout_seconds: float = 300.0,
    apptainer: str = "apptainer",
    rule: ImageRule | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> CommandResult:
    """How the image ended with these arguments, run here and now without any of the host's files.

    The site's `rule` for the image counts as for a job, with a tmpfs for what would be written to an overlay. Raises
    CommandStopped soon after `should_stop` turned true; the container is ended.
    """
    rule = rule or ImageRule()
    spec = ContainerSpec(
        sif=str(sif.path),
        image=sif.config,
        scratch=str(scratch),
        writable_tmpfs=rule.writable in ("tmpfs", "overlay"),
        fakeroot=bool(rule.fakeroot),
        network_none=bool(rule.network_none),
    )
    variables = container_environment(spec)
    if variables:
        file = scratch / "environment"
        file.touch(mode=0o600)
        file.write_text(environment_file_text(variables), encoding="utf-8")
        spec = replace(spec, environment_file=str(file))
    argv = container_argv(spec, apptainer=apptainer, arguments=arguments)
    try:
        # Not where this was called, which may be a directory that this user cannot enter.
        return runner.run(argv, timeout_seconds=timeout_seconds, cwd=scratch, should_stop=should_stop)
    except CommandNotFound as error:
        raise ProgramMissing(str(error)) from error
    except CommandTimeout as error:
        raise CliContractViolated(
            f"{sif.reference} did not answer {' '.join(arguments)!r} within {timeout_seconds:g} s.",
            remedy="It must print the answer and end by itself; `girder-singularity run IMAGE --list_cli` shows what it does.",
        ) from error


def _describe(
    image: str, name: str, spec: Mapping[str, Any], run: Callable[[Sequence[str]], CommandResult]
) -> CliDescription:
    desc_type = _description_type(image, name, spec.get("desc-type", DEFAULT_TYPE))
    text = _answer(image, run, [name, f"--{desc_type}"])
    description = _trim(image, name, desc_type, text)
    _check_size(image, name, desc_type, description)
    return CliDescription(
        name=name,
        cli_type=str(spec.get("type", "Unknown")),
        desc_type=desc_type,
        description=description,
        spec={**spec, "desc-type": desc_type, desc_type: description},
    )


def _answer(image: str, run: Callable[[Sequence[str]], CommandResult], arguments: list[str]) -> str:
    result = run(arguments)
    if result.returncode != 0:
        own_words = _HOST_REFUSES.search(result.stderr)
        if own_words is not None:
            raise ContainerNotStarted(
                f"No container can be started on this host: {_shown(own_words['said'])}."
            )
        said = _shown(result.stderr.strip() or result.stdout.strip())
        raise CliContractViolated(
            f"{image} answered {' '.join(arguments)!r} with exit code {result.returncode} and said: {said}."
        )
    if result.truncated:
        raise CliContractViolated(f"{image} answered {' '.join(arguments)!r} with more than can be read.")
    return result.stdout


def _check_size(image: str, name: str, desc_type: str, description: str) -> None:
    size = len(description.encode("utf-8", errors="replace"))
    if size > MOST_DESCRIPTION_BYTES:
        raise CliContractViolated(
            f"{image} answered '{name} --{desc_type}' with {size / 1e6:.1f} MB; Girder can keep"
            f" {MOST_DESCRIPTION_BYTES / 1e6:.0f} MB.",
            remedy="Move what makes the description so long (enumerations, texts) out of it.",
        )


def _parse_list(image: str, text: str) -> dict[str, dict[str, Any]]:
    listed = _first_json(text)
    if listed is None:
        raise CliContractViolated(
            f"{image} answered '--list_cli' with something that is not JSON: {_shown(text)}."
        )
    if not isinstance(listed, dict) or not all(isinstance(spec, dict) for spec in listed.values()):
        raise CliContractViolated(f"{image} answered '--list_cli' with JSON that is not a mapping of CLIs.")
    for name in listed:
        if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise CliContractViolated(
                f"{image} lists a CLI with the name {_shown(name)}, which no program can be given."
            )
    return listed


def _first_json(text: str) -> Any:
    """The first JSON object in a text that may hold other lines before and after, else any JSON, else None."""
    decoder, other = json.JSONDecoder(), None
    starts = (match.start() for match in re.finditer(r"[{\[]", text))
    for start in itertools.islice(starts, _MOST_BRACKETS):
        with contextlib.suppress(ValueError, RecursionError):
            value = decoder.raw_decode(text, start)[0]
            if isinstance(value, dict):
                return value
            other = value if other is None else other
    return other


def _description_type(image: str, name: str, value: Any) -> str:
    candidates = value if isinstance(value, list) else [value]
    for candidate in candidates:
        if isinstance(candidate, str) and candidate.lower() in DESCRIPTION_TYPES:
            return candidate.lower()
    raise CliContractViolated(
        f"{image} lists the CLI {name} with the description type {value!r}; known are {', '.join(DESCRIPTION_TYPES)}."
    )


def _trim(image: str, name: str, desc_type: str, text: str) -> str:
    """The description without what a start script printed around it."""
    description = {"xml": _xml_in, "json": _json_in, "yaml": _yaml_in}[desc_type](text)
    if not description:
        raise CliContractViolated(
            f"{image} answered '{name} --{desc_type}' with no {desc_type.upper()}: {_shown(text)}."
        )
    return description


def _xml_in(text: str) -> str:
    # Noise may hold angle brackets too (`<frozen importlib._bootstrap>`): the root element counts, if it is there.
    start = _XML_START.search(text)
    end = next(iter(deque(_XML_END.finditer(text), maxlen=1)), None)
    if start is not None and end is not None and start.start() < end.start():
        head = text.rfind("<?xml", 0, start.start())
        return text[head if head >= 0 else start.start() : end.end()]
    first, last = text.find("<"), text.rfind(">")
    return text[first : last + 1] if 0 <= first < last else ""


def _json_in(text: str) -> str:
    """The first JSON object that has a title, as every description must, else the first one, else nothing."""
    decoder, first, start = json.JSONDecoder(), "", text.find("{")
    for _attempt in range(_MOST_BRACKETS):
        if start < 0:
            break
        end = start + 1
        with contextlib.suppress(ValueError, RecursionError):
            value, end = decoder.raw_decode(text, start)
            if "title" in value:
                return text[start:end]
            first = first or text[start:end]
        start = text.find("{", end)
    return first


def _yaml_in(text: str) -> str:
    """The description, if its beginning is recognized; else all of it, since any text may be YAML."""
    match = _YAML_START.search(text)
    if match is None:
        return text if text.strip() else ""
    lines = text[match.start() :].splitlines(keepends=True)
    while lines and not (lines[-1].strip() and _YAML_LINE.match(lines[-1])):
        lines.pop()
    return "".join(lines)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
