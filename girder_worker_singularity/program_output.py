"""What is kept of a program's output, however much there is, and its lines as they come."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_LINE = 64 * 1024


class KeptOutput:
    """The beginning and the end of an output, each of at most so many bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def add(self, chunk: bytes) -> None:
        """Takes the next piece."""
        room = self._limit - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if len(self._tail) > 2 * self._limit:  # trimmed seldom, so that a long output costs linear time
            self._trim()

    def _trim(self) -> None:
        excess = len(self._tail) - self._limit
        if excess > 0:
            del self._tail[:excess]
            self._left_out += excess

    @property
    def truncated(self) -> bool:
        """Whether the middle was left out."""
        self._trim()
        return self._left_out > 0

    def text(self) -> str:
        """All that was kept; where something was left out, a line says how much."""
        self._trim()
        if not self._left_out:
            return (self._head + self._tail).decode("utf-8", errors="replace")
        head = self._head.decode("utf-8", errors="replace")
        tail = self._tail.decode("utf-8", errors="replace")
        return f"{head}\n[... {self._left_out} bytes left out ...]\n{tail}"


class Lines:
    """Bytes in, whole lines out; a carriage return ends one too, and empty ones are passed over."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""

    def add(self, chunk: bytes) -> None:
        """Takes the next piece, cut anywhere."""
        text = self._partial + self._decoder.decode(chunk)
        *whole, self._partial = text.replace("\r", "\n").split("\n")
        for line in whole:
            self._emit(line)
        if len(self._partial) > _LONGEST_LINE:
            self._emit(self._partial)
            self._partial = ""

    def finish(self) -> None:
        """Hands over what has no end of a line."""
        self.add(b"")
        self._partial += self._decoder.decode(b"", final=True)
        self._emit(self._partial)
        self._partial = ""

    def _emit(self, line: str) -> None:
        if line:
            self._on_line(line)
