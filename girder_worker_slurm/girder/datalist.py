"""Which runs are asked for by a form that waits: Girder's "datalist" requests. Pure.

A CLI may name other ways to call itself that list the possible values of a parameter (the attribute ``datalist`` of
the parameter's description, a JSON object of parameters). Girder runs such a call as an ordinary job and keeps a REST thread
waiting until it has ended, so these runs must not wait in Slurm's queue. Nothing in the message says so; but the
values are those of the description, and there are no outputs.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def is_datalist_request(arguments: Sequence[str], description: str) -> bool:
    """Whether a run with these arguments (without the CLI's name) is one of the description's datalist calls."""
    if "datalist" not in description:
        return False
    try:
        root = fromstring(description)
    except (ParseError, ValueError):
        return False
    flags = {_text(entry, "name"): _flags(entry) for group in root.iter("parameters") for entry in group}
    for parameter in root.iter():
        try:
            values = json.loads(parameter.get("datalist") or "null")
        except ValueError:
            continue
        if isinstance(values, dict) and values and _matches(arguments, values, flags):
            return True
    return False


def has_flag(description: str, flag: str) -> bool:
    """Whether a parameter of the description has this flag, such as `--gpu`."""
    if flag.lstrip("-") not in description:
        return False
    try:
        root = fromstring(description)
    except (ParseError, ValueError):
        return False
    return any(flag in _flags(entry) for group in root.iter("parameters") for entry in group)


def _matches(
    arguments: Sequence[str], values: Mapping[str, object], flags: Mapping[str, tuple[str, ...]]
) -> bool:
    pairs = set(itertools.pairwise(arguments))
    for name, value in values.items():
        own = flags.get(name, ())
        if value is None:
            if any(flag in arguments for flag in own):
                return False
        elif own:
            if not any((flag, str(value)) in pairs for flag in own):
                return False
        elif str(value) not in arguments:
            return False
    return True


def _flags(entry: Element) -> tuple[str, ...]:
    found = []
    long, short = _text(entry, "longflag"), _text(entry, "flag")
    if long:
        found.append(f"--{long.lstrip('-')}")
    if short:
        found.append(f"-{short.lstrip('-')}")
    return tuple(found)


def _text(entry: Element, name: str) -> str:
    return (entry.findtext(name) or "").strip()
