"""What stands beside a SIF: whose it is and where it came from.

The note decides *whose* a file name is. What it says of the file holds only as long as the identities agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


BY_HAND = "put there by hand"
"""The source of a SIF that nobody can make again from here."""


@dataclass(frozen=True)
class SifNote:
    """The facts about one SIF; empty or None what is not known."""

    canonical: str
    identity: str = ""
    digest: str | None = None
    image_id: str | None = None
    source: str = ""
    reference: str = ""
    converted_at: float = 0.0
    verified: str = ""
    """The identity of the file whose signature was accepted."""
    sha256: str = ""
    """The checksum of the file as it was made."""
    modified: int = 0
    """The file's time of modification then, in seconds since the epoch."""


def note_path(path: Path) -> Path:
    """The note of this SIF."""
    return path.with_name(f"{path.name}.json")


def read_note(path: Path) -> SifNote | None:
    """The note of this SIF; None if there is none that can be read."""
    try:
        values: Any = json.loads(note_path(path).read_text(encoding="utf-8"))
        canonical = values["canonical"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return SifNote(
        canonical=str(canonical),
        identity=str(values.get("identity", "")),
        digest=_text_or_none(values.get("digest")),
        image_id=_text_or_none(values.get("image_id")),
        source=str(values.get("source", "")),
        reference=str(values.get("reference", "")),
        converted_at=_seconds(values.get("converted_at")),
        verified=str(values.get("verified", "")),
        sha256=str(values.get("sha256", "")),
        modified=int(_seconds(values.get("modified"))),
    )


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def write_note(path: Path, note: SifNote, *, replace: bool = True) -> None:
    """Writes the note of this SIF whole; without `replace`, only if there is none."""
    temporary = path.with_name(f".tmp-{path.stem}~{uuid.uuid4().hex[:12]}.json")
    temporary.write_text(json.dumps(asdict(note), indent=1) + "\n", encoding="utf-8")
    try:
        if replace:
            fsync(temporary)
            temporary.rename(note_path(path))
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, note_path(path))
    finally:
        temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Brings a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
