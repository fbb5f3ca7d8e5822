"""Container output → text for the log and progress for the bar. Pure.

Slicer CLIs report progress as ``<filter-progress>0.5</filter-progress>`` and the like in their output. The
elements are taken out of the log, as Girder's own worker does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.sax.saxutils import unescape

_NAME = re.compile(rb"<filter-name>([^<]*)</filter-name>")
_COMMENT = re.compile(rb"<filter-comment>([^<]*)</filter-comment>")
_BLANK = re.compile(rb"\s*")
_NAMES = frozenset({b"start", b"end", b"name", b"comment", b"progress", b"stage-progress", b"time"})
#: These may have other elements inside.
_OUTER = frozenset({b"start", b"end"})
_OPENING = b"<filter-"
#: An element is held back until its end is there, but not for ever: text may contain the opening by chance.
_LONGEST_ELEMENT = 64 * 1024
_LONGEST_NAME = 16


@dataclass(frozen=True)
class OutputText:
    """What a piece of container output means."""

    text: str
    #: Between 0 and 1, or None when the piece has no progress in it.
    progress: float | None
    message: str | None
    #: Bytes understood; the rest is the beginning of something and is to be handed in again with what follows.
    consumed: int


@dataclass(frozen=True)
class _Element:
    start: int
    stop: int
    name: bytes
    content: bytes


def read_output(data: bytes, *, final: bool = False) -> OutputText:
    """The text and progress in a piece of output. With `final` nothing is held back."""
    elements, open_at = _elements(data)
    end = len(data) if final else _end(data, elements, open_at)
    progress = None
    message = None
    text = bytearray()
    position = 0
    for element in elements:
        # Also of an element that is held back for its line end: progress is not to be late.
        if element.name == b"progress":
            progress = _fraction(element.content, progress)
        message = _message(element) or message
        if element.stop <= end:
            text += data[position : element.start]
            position = element.stop
    text += data[position:end]
    return OutputText(bytes(text).decode("utf-8", errors="replace"), progress, message, end)


def _message(element: _Element) -> str | None:
    """What a person reads beside the bar: the comment if there is one, else the name."""
    if element.name in _OUTER:
        found = _COMMENT.findall(element.content) or _NAME.findall(element.content)
        content = found[-1] if found else b""
    else:
        content = element.content if element.name in (b"name", b"comment") else b""
    return unescape(content.decode("utf-8", errors="replace")).strip() or None


def _elements(data: bytes) -> tuple[list[_Element], int | None]:
    """The whole elements in order, and where one begins whose end has not come.

    One pass: where the next closing tag of each name stands is looked up once, not for every opening tag.
    """
    found: list[_Element] = []
    closings: dict[bytes, int] = {}
    position = data.find(_OPENING)
    while position != -1:
        inner = position + len(_OPENING)
        bracket = data.find(b">", inner, inner + _LONGEST_NAME + 1)
        name = data[inner : bracket if bracket != -1 else inner + _LONGEST_NAME + 1]
        if bracket == -1:
            is_cut = inner + len(name) == len(data) and any(known.startswith(name) for known in _NAMES)
            if is_cut:
                return found, position
        elif name in _NAMES:
            if closings.get(name, 0) != -1 and closings.get(name, 0) <= bracket:
                closings[name] = data.find(b"</filter-" + name + b">", bracket)
            closing = closings[name]
            if closing == -1 and len(data) - position <= _LONGEST_ELEMENT:
                return found, position
            is_whole = 0 <= closing - bracket <= _LONGEST_ELEMENT
            if is_whole and (name in _OUTER or data.find(b"<", bracket, closing) == -1):
                blank = _BLANK.match(data, closing + len(b"</filter->") + len(name))
                stop = blank.end() if blank else closing
                found.append(_Element(position, stop, name, data[bracket + 1 : closing]))
                position = data.find(_OPENING, stop)
                continue
        position = data.find(_OPENING, inner)
    return found, None


def _end(data: bytes, elements: list[_Element], open_at: int | None) -> int:
    """How far the data can be understood: not into what may be the beginning of an element or of a character."""
    if open_at is not None:
        return open_at
    if elements and elements[-1].stop == len(data) and data.endswith(b">"):
        # Its line end belongs to it and is on the way.
        return elements[-1].start
    for length in range(min(len(data), len(_OPENING) - 1), 0, -1):
        if data.endswith(_OPENING[:length]):
            return len(data) - length
    return len(data) - _open_character(data)


def _fraction(value: bytes, before: float | None) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return before
    return min(max(number, 0.0), 1.0) if number == number else before  # noqa: PLR0124 - NaN is not itself


def _open_character(data: bytes) -> int:
    """Bytes at the end that begin a UTF-8 character without ending it."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < needed else 0
    return 0
