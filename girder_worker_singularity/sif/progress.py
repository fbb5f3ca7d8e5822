"""How far a conversion is, from what Apptainer prints. Pure."""

from __future__ import annotations

#: Beginnings of Apptainer's lines (1.1 to 1.4; recorded in tests/recorded), in the order in which they come.
_PHASES = (
    ("Starting build", "starting"),
    ("Fetching OCI image", "fetching layers"),
    ("Extracting OCI image", "unpacking layers"),
    ("Creating SIF file", "writing the SIF"),
    ("Build complete", "done"),
)


def conversion_phase(line: str) -> str | None:
    """What a line says about how far it is, in few words; None if it says nothing about that."""
    text = line.removeprefix("INFO:").strip()
    if text.startswith("Slurm: "):
        return text
    return next((phase for beginning, phase in _PHASES if text.startswith(beginning)), None)
