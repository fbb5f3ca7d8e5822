"""What is in a store: every SIF with what its note, its stamp and the file itself say. Only reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import ImageReferenceInvalid, SifDamaged
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.sif.file import read_sif
from girder_worker_singularity.sif.note import BY_HAND, read_note
from girder_worker_singularity.sif.use import last_used

if TYPE_CHECKING:
    from pathlib import Path

    from girder_worker_singularity.image.reference import ImageReference
    from girder_worker_singularity.sif.file import SifContents
    from girder_worker_singularity.sif.note import SifNote


@dataclass(frozen=True)
class StoredSif:
    """One SIF of a store."""

    path: Path
    size_bytes: int
    identity: str
    """Differs between any two builds; empty if the file is damaged."""
    image: str
    """The image it was asked for as, or was pulled as; empty if nobody noted it."""
    reference: ImageReference | None
    made_at: float
    """Seconds since the epoch."""
    last_used_at: float | None
    """Seconds since the epoch, None if no use was ever noted."""
    source: str
    digest: str | None
    can_be_made_again: bool
    """Whether this very file was converted from an image by a store: then the next job that wants it has it made."""
    damage: str = ""
    """What is wrong with the file; empty if it is whole."""

    @property
    def idle_since(self) -> float:
        """When it was last used or, if that is not known, made: seconds since the epoch."""
        return max(self.made_at, self.last_used_at or 0.0)


def inventory(root: Path) -> list[StoredSif]:
    """The SIFs of this directory by name, damaged ones included; empty if there is no directory."""
    found = []
    for path in sorted(root.glob("*.sif")):
        if not path.name.startswith("."):
            try:
                found.append(look_at(path))
            except FileNotFoundError:  # removed since
                continue
    return found


def look_at(path: Path) -> StoredSif:
    """What is known about one SIF; raises FileNotFoundError if there is none."""
    contents: SifContents | None = None
    damage = ""
    try:
        contents = read_sif(path)
    except SifDamaged as error:
        damage = error.what
    status = path.stat()
    note = read_note(path)
    speaks_of_it = (
        note is not None and bool(note.identity) and (contents is None or contents.identity == note.identity)
    )
    image = _image(note, contents)
    return StoredSif(
        path=path,
        size_bytes=status.st_size,
        identity=contents.identity if contents is not None else "",
        image=image,
        reference=_reference(image),
        made_at=(note.converted_at if note is not None and speaks_of_it else 0.0) or status.st_mtime,
        last_used_at=last_used(path),
        source=note.source if note is not None and speaks_of_it else BY_HAND,
        digest=note.digest if note is not None and speaks_of_it else None,
        can_be_made_again=note is not None and speaks_of_it and note.source != BY_HAND,
        damage=damage,
    )


def _image(note: SifNote | None, contents: SifContents | None) -> str:
    if note is not None:
        return note.reference or note.canonical
    return (contents.pulled_from or "") if contents is not None else ""


def _reference(image: str) -> ImageReference | None:
    try:
        return parse_image_reference(image)
    except ImageReferenceInvalid:
        return None
