"""Prints progress: one short line per step, with the seconds it took."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Report:
    """Progress lines on standard output; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """Print one line."""
        with self._lock:
            try:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
            except BrokenPipeError:  # the reader has gone (`| head`): the work goes on in silence
                sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until we end

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Print `text` with the seconds taken once the block has ended well."""
        began = time.monotonic()
        yield
        self.line(f"{text} ({time.monotonic() - began:.1f} s)")

    def total(self, text: str) -> None:
        """Print `text` with the seconds since the command began."""
        self.line(f"{text} ({time.monotonic() - self._started:.1f} s in all)")
