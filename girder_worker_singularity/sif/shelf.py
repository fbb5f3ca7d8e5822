"""The files of a store, and whose they are: which SIF is an image's, and how a new one takes its place.

The directory, which other Digital Slide Archive tools may share::

    team_tool_1.sif            the image team/tool:1
    team_tool_1.sif.json       whose it is and where it came from (the note)
    team_tool_1~5f2c….sif      another image that would have the same name (team_tool:1)
    .leases/team_tool_1        held while one process makes it
    .tmp-team_tool_1~….sif     a SIF in the making; it gets its name when it is whole
    .old-team_tool_1~….sif     a SIF that was replaced, kept for the jobs that run from it
    .used/team_tool_1.sif      when it was last used, see `sif/use.py`

    team_tool_1                a sandbox directory that somebody put there: a SIF is made of it

A `.sif` that somebody put there by hand needs no note. The note is written before its SIF, so that a name is never
without an owner: it decides *whose* the file is, and it speaks of *that* file only as long as the identities agree.
"""

from __future__ import annotations

import contextlib
import glob
import os
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import (
    ImageNotInStore,
    ImageReferenceInvalid,
    SifDamaged,
    SifUnsupported,
)
from girder_worker_singularity.image.config import ImageConfig, image_config
from girder_worker_singularity.image.reference import ImageReference, parse_image_reference
from girder_worker_singularity.sif.checksum import CHANGED, SoundFiles, modified
from girder_worker_singularity.sif.file import SifContents, read_sif
from girder_worker_singularity.sif.note import BY_HAND, SifNote, fsync, note_path, read_note, write_note

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LEASES = ".leases"
"""Directory of the leases, each named like the SIF that its holder makes or removes."""


@dataclass(frozen=True)
class Sif:
    """An image as a file."""

    path: Path
    reference: ImageReference
    config: ImageConfig
    digest: str | None = None
    """The registry's digest of the image it was made of, if known."""
    converted: bool = False
    """Whether this call made it (or waited for it to be made)."""


class Shelf:
    """The SIF files of one directory by the image they are of. Makes none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sound_files = SoundFiles()

    def look(self, reference: ImageReference) -> Sif | None:
        """The SIF of this image if there is one; raises SifDamaged if it is not whole."""
        path = self._path_of(reference)
        if path is None:
            return self._find_by_digest(reference) if reference.digest else None
        try:
            contents = read_sif(path)
        except FileNotFoundError:  # removed since
            return None
        note = read_note(path)
        if note is None or note.identity != contents.identity:
            return _sif(path, reference, contents, reference.digest)
        if not self._sound_files.is_sound(path, note):
            raise SifDamaged(f"{path} is damaged: {CHANGED}.")
        return _sif(path, reference, contents, note.digest or reference.digest)

    def look_whole(self, reference: ImageReference) -> Sif | None:
        """The SIF of this image if there is one and it is whole; raises SifUnsupported."""
        try:
            return self.look(reference)
        except SifUnsupported:
            raise
        except SifDamaged:
            return None

    def _path_of(self, reference: ImageReference) -> Path | None:
        """The file of this image, if there is one; never another image's."""
        plain = self.root / reference.sif_name
        if plain.exists() and self._belongs(plain, reference):
            return plain
        other = self.root / reference.unambiguous_sif_name
        return other if other.exists() and self._belongs(other, reference) else None

    def _belongs(self, path: Path, reference: ImageReference) -> bool:
        note = read_note(path)
        if note is not None:
            return note.canonical == reference.canonical
        pulled_from = _pulled_from(path)
        # Put there by hand. Whoever pulled it may have said what it is; only a name that also ends up in this
        # file contradicts, not one of another registry or tag.
        return (
            pulled_from is None
            or pulled_from.canonical == reference.canonical
            or pulled_from.sif_name != reference.sif_name
        )

    def _path_for_new(self, reference: ImageReference) -> Path:
        plain = self.root / reference.sif_name
        note = read_note(plain)
        taken = note.canonical != reference.canonical if note is not None else plain.exists()
        if taken and not (plain.exists() and self._belongs(plain, reference)):
            return self.root / reference.unambiguous_sif_name
        return plain

    def _find_by_digest(self, reference: ImageReference) -> Sif | None:
        """A SIF that was made by tag and is of exactly this digest."""
        stem = replace(reference, tag=None, digest=None).sif_stem
        for path_of_note in self.root.glob(f"{glob.escape(stem)}*.sif.json"):
            path = path_of_note.with_suffix("")
            note = read_note(path)
            if note is None or note.digest != reference.digest:
                continue
            with contextlib.suppress(ImageReferenceInvalid, SifDamaged, FileNotFoundError):
                if (
                    parse_image_reference(note.canonical).canonical_repository
                    != reference.canonical_repository
                ):
                    continue
                contents = read_sif(path)
                if contents.identity == note.identity and self._sound_files.is_sound(path, note):
                    return _sif(path, reference, contents, reference.digest)
        return None

    def claim(self, sif: Sif) -> None:
        """Note whose a SIF is that was put there by hand, so that no other image takes it for its own."""
        if sif.path.name != sif.reference.sif_name or note_path(sif.path).exists():
            return
        note = SifNote(sif.reference.canonical, source=BY_HAND, reference=str(sif.reference))
        with contextlib.suppress(OSError):  # a store that only can be read works as well
            write_note(sif.path, note, replace=False)

    def adopt(self, reference: ImageReference) -> Path:
        """Notes that the SIF of this file name, put there by hand, is this image, whoever used it before.

        Returns the file. Raises ImageNotInStore if there is none, or if it was converted here from another image;
        SifDamaged if it is not whole, OSError if the store cannot be written to.
        """
        path = self.root / reference.sif_name
        try:
            contents = read_sif(path)
        except FileNotFoundError as error:
            raise ImageNotInStore(f"There is no {path.name} in {self.root}.") from error
        note = read_note(path)
        if note is not None and note.source != BY_HAND and note.identity == contents.identity:
            raise ImageNotInStore(
                f"{path} was not put there by hand: it was made of {note.reference or note.canonical}."
            )
        write_note(path, SifNote(reference.canonical, source=BY_HAND, reference=str(reference)))
        return path

    def taken_by_another(self, reference: ImageReference) -> str:
        """Why the SIF that was put there by hand under this image's name is not used; empty if that is not so."""
        path = self.root / reference.sif_name
        note = read_note(path)
        if note is None or note.source != BY_HAND or note.canonical == reference.canonical:
            return ""
        if not path.exists():
            return ""
        return (
            f"{path.name} was put there by hand and was first used as {note.reference or note.canonical}, so it is not"
            f" taken for {reference}. If it is: girder-singularity adopt {reference}"
        )

    def publish(
        self,
        reference: ImageReference,
        temporary: Path,
        contents: SifContents,
        note: SifNote,
        *,
        now: float,
        check: Callable[[], None],
    ) -> Sif:
        """Gives a finished file the name of its image; a SIF that had it is kept under another for who runs from it.

        `check` is called at the last moment and raises if this process may not publish any more.
        """
        path = self._path_for_new(reference)
        final = replace(
            note,
            identity=contents.identity,
            reference=str(reference),
            converted_at=now,
            modified=modified(temporary),
        )
        check()
        if identity_of(path) is not None:
            # On a network file system a file that is replaced is torn away from who has it open on another host.
            os.link(path, self.root / f".old-{path.stem}~{uuid.uuid4().hex[:12]}.sif")
        write_note(path, final)
        temporary.chmod(0o644)
        temporary.rename(path)
        fsync(self.root)
        return _sif(path, reference, contents, note.digest, converted=True)

    def remove_leftovers(self, reference: ImageReference, *, replaced_before: float) -> None:
        """Removes what dead converters of this name left: whoever holds the lease knows that they are dead.

        SIFs that were replaced go as well, if that was before this time.
        """
        for leftover in self.root.glob(f".tmp-{glob.escape(reference.sif_stem)}~*"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        for replaced in self.root.glob(".old-*~*.sif"):
            with contextlib.suppress(OSError):
                if replaced.stat().st_ctime < replaced_before:
                    replaced.unlink()


def _sif(
    path: Path,
    reference: ImageReference,
    contents: SifContents,
    digest: str | None,
    *,
    converted: bool = False,
) -> Sif:
    config = image_config(
        contents.oci_config, contents.labels, overrides_runscript=contents.overrides_runscript
    )
    return Sif(path, reference, config, digest, converted)


def identity_of(path: Path) -> str | None:
    """What differs between any two builds of a SIF; None if there is no whole file."""
    try:
        return read_sif(path).identity
    except (FileNotFoundError, SifDamaged):
        return None


def _pulled_from(path: Path) -> ImageReference | None:
    try:
        text = read_sif(path).pulled_from
        return parse_image_reference(text) if text else None
    except (FileNotFoundError, SifDamaged, ImageReferenceInvalid):
        return None
