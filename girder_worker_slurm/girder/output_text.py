"""Container output → text for the log and progress for the bar. Pure.

Slicer CLIs report progress as ``<filter-progress>0.5</filter-progress>`` and the like in their output. The
elements are taken out of the log, as Girder's own worker does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.sax.saxutils import unescape

_ELEMENTS = re.compile(
    rb"<filter-(start|end)>.*?</filter-\1>\s*|<filter-(name|comment|progress|stage-progress|time)>[^<]*</filter-\2>\s*",
    re.DOTALL,
)
_NAME = re.compile(rb"<filter-name>([^<]*)</filter-name>")
_COMMENT = re.compile(rb"<filter-comment>([^<]*)</filter-comment>")
_PROGRESS = re.compile(rb"<filter-progress>([^<]*)</filter-progress>")
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


def read_output(data: bytes, *, final: bool = False) -> OutputText:
    """The text and progress in a piece of output. With `final` nothing is held back."""
    end = len(data) if final else len(data) - _held_back(data)
    piece = data[:end]
    text = _ELEMENTS.sub(b"", piece).decode("utf-8", errors="replace")
    progress = None
    message = None
    # Also of an element that is held back for its line end: progress is not to be late.
    if _OPENING in data:
        comments = _COMMENT.findall(data)
        names = _NAME.findall(data)
        last = comments or names
        if last:
            message = unescape(last[-1].decode("utf-8", errors="replace")).strip()
        for value in _PROGRESS.findall(data):
            progress = _fraction(value, progress)
    return OutputText(text, progress, message, end)


def _fraction(value: bytes, before: float | None) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return before
    return min(max(number, 0.0), 1.0) if number == number else before  # noqa: PLR0124 - NaN is not itself


def _held_back(data: bytes) -> int:
    """How many bytes at the end may be the beginning of an element or of a character."""
    start = _open_element(data)
    if start is not None and len(data) - start <= _LONGEST_ELEMENT:
        return len(data) - start
    tail = data[-len(_OPENING) + 1 :]
    for length in range(min(len(tail), len(_OPENING) - 1), 0, -1):
        if data.endswith(_OPENING[:length]):
            return length
    return _open_character(data)


def _open_element(data: bytes) -> int | None:
    """Where an element begins that has not ended yet."""
    position = data.find(_OPENING)
    while position != -1:
        match = _ELEMENTS.match(data, position)
        if match is None:
            closing = data.find(b">", position)
            name = data[position + len(_OPENING) : closing if closing != -1 else None]
            is_possible = len(name) <= _LONGEST_NAME and re.fullmatch(rb"[a-z-]*", name) is not None
            if is_possible and (closing == -1 or b"</filter-" + name + b">" not in data[closing:]):
                return position
        elif match.end() == len(data) and data.endswith(b">"):
            # Its line end belongs to it and is on the way.
            return position
        position = data.find(_OPENING, position + 1 if match is None else match.end())
    return None


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
