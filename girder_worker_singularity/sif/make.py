"""Makes the SIF of an image from the first place that gives it, and tells whether one that was made is still current."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.errors import (
    ContainerError,
    ConversionStopped,
    ImageNotFound,
    NotEnoughSpace,
    ProgramMissing,
    SignatureInvalid,
    StoreNotWritable,
)
from girder_worker_singularity.sif.convert import Account, ConvertOptions, convert, verify_signature
from girder_worker_singularity.sif.file import read_sif
from girder_worker_singularity.sif.note import SifNote
from girder_worker_singularity.source.local_files import PLACED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.image.reference import ImageReference
    from girder_worker_singularity.source.image_sources import ImageSources
    from girder_worker_singularity.source.origin import Origin

#: No other place would help.
_FINAL = (ConversionStopped, NotEnoughSpace, ProgramMissing, SignatureInvalid, StoreNotWritable)
_SPOKEN = {"docker-daemon": "the Docker engine", "docker": "the registry", "oras": "the registry"}


class SifMaker:
    """Makes SIFs; knows no store. `build_runner` is where images are converted, if not where all else runs."""

    def __init__(
        self,
        sources: ImageSources,
        runner: CommandRunner,
        options: ConvertOptions,
        *,
        build_runner: CommandRunner | None = None,
        verify_signatures: bool = False,
    ) -> None:
        self._sources = sources
        self._runner = runner
        self._build_runner = build_runner or runner
        self._options = options
        self._verify_signatures = verify_signatures

    def make(
        self,
        reference: ImageReference,
        temporary: Path,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] | None,
    ) -> SifNote:
        """What is to be noted about the SIF that lies at `temporary` now; raises what the last place said."""
        failure: ContainerError | None = None
        for origin in self._sources.origins(reference):
            try:
                return self._take(reference, origin, temporary, tell, should_stop)
            except _FINAL:
                raise
            except ContainerError as error:
                if origin.source in PLACED:
                    # Put there to be used: what is wrong with it must not be hidden by what a registry says.
                    raise
                failure = error
                tell(f"Not taken from {_SPOKEN.get(origin.source, origin.uri)}: {error.what}")
        raise failure or ImageNotFound(
            f"No place that this site takes images from has {reference}.",
            remedy="Put it into one of them, or extend `sources` in [singularity].",
        )

    def is_current(self, note: SifNote, reference: ImageReference) -> bool | None:
        """Whether making the SIF again would make the same; None if that cannot be known now."""
        for origin in self._sources.origins(reference):
            if origin.stamp is not None:
                return note.image_id == origin.stamp
            return note.digest == origin.digest if origin.digest is not None else None
        return None

    def verify(self, reference: ImageReference, path: Path) -> None:
        """Nothing, or SignatureInvalid."""
        verify_signature(reference, path, runner=self._runner, options=self._options)

    def _take(
        self,
        reference: ImageReference,
        origin: Origin,
        temporary: Path,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] | None,
    ) -> SifNote:
        credentials = self._sources.credentials(origin)
        # Only this host has its Docker engine.
        runner = self._runner if origin.source == "docker-daemon" else self._build_runner
        is_elsewhere = runner is not self._runner
        tell(f"{'Fetching the SIF of' if origin.holds_sif else 'Converting'} {reference} ...")
        convert(
            reference,
            temporary,
            origin=origin,
            runner=runner,
            options=self._options,
            account=Account(credentials, self._sources.secret_words(credentials)),
            on_progress=tell,
            should_stop=should_stop,
            expected=None if is_elsewhere else self._sources.expected_bytes(origin, credentials),
            is_elsewhere=is_elsewhere,
        )
        verified = ""
        if origin.holds_sif and self._verify_signatures:
            try:
                self.verify(reference, temporary)
                verified = read_sif(temporary).identity
            except ContainerError:
                temporary.unlink(missing_ok=True)
                raise
        return SifNote(
            reference.canonical,
            digest=origin.digest,
            image_id=origin.stamp,
            source=origin.source,
            verified=verified,
        )
