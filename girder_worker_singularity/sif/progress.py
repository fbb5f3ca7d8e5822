"""How far a conversion is, from what Apptainer prints and from what lies on the disk. Pure.

Who listens to a conversion gets Apptainer's lines, and between them lines of our own with bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: Beginnings of Apptainer's lines (1.1 to 1.4; recorded in tests/recorded), in the order in which they come.
_PHASES = (
    ("Starting build", "starting"),
    ("Fetching OCI image", "fetching layers"),
    ("Downloading oras image", "fetching the SIF"),
    ("Downloading library image", "fetching the SIF"),
    ("Extracting OCI image", "unpacking layers"),
    ("Creating SIF file", "writing the SIF"),
    ("Build complete", "done"),
)
_BYTES = re.compile(r"Bytes: (fetching|writing) (\d+) of (\d+|\?)")
_SPOKEN = {"fetching": "fetching", "writing": "writing the SIF,"}


@dataclass(frozen=True)
class Transfer:
    """How many bytes of the present phase are there."""

    doing: Literal["fetching", "writing"]
    done: int
    total: int | None = None
    """None if it is not known."""

    @property
    def line(self) -> str:
        """Itself as a line between those of Apptainer."""
        return f"Bytes: {self.doing} {self.done} of {'?' if self.total is None else self.total}"

    @property
    def text(self) -> str:
        """`fetching 312 of 845 MB`, `writing the SIF, 210 MB`."""
        largest = self.done if self.total is None else self.total
        unit, bytes_per_unit = ("GB", 1e9) if largest >= 10e9 else ("MB", 1e6)
        digits = 0 if largest >= 10e6 and unit == "MB" else 1
        total = "" if self.total is None else f" of {self.total / bytes_per_unit:.{digits}f}"
        return f"{_SPOKEN[self.doing]} {self.done / bytes_per_unit:.{digits}f}{total} {unit}"


def transfer_in(line: str) -> Transfer | None:
    """What a line of our own says; None for all others."""
    found = _BYTES.fullmatch(line)
    if found is None:
        return None
    doing: Literal["fetching", "writing"] = "fetching" if found[1] == "fetching" else "writing"
    return Transfer(doing, int(found[2]), None if found[3] == "?" else int(found[3]))


def phase_with_bytes(phase: str) -> Literal["fetching", "writing"] | None:
    """Which bytes grow in this phase; None if none do, or nobody knows which."""
    if phase.startswith("fetching"):
        return "fetching"
    return "writing" if phase.startswith("writing") else None


def conversion_phase(line: str) -> str | None:
    """What a line says about how far it is, in few words; None if it says nothing about that."""
    transfer = transfer_in(line)
    if transfer is not None:
        return transfer.text
    text = line.removeprefix("INFO:").strip()
    if text.startswith("Slurm: "):
        return text
    return next((phase for beginning, phase in _PHASES if text.startswith(beginning)), None)
