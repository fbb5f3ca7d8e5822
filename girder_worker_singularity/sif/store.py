"""Where SIF files live: one per image, made once whoever asks, and found again by looking at one name.

The directory, which other Digital Slide Archive tools may share::

    team_tool_1.sif            the image team/tool:1
    team_tool_1.sif.json       whose it is and where it came from (the note)
    team_tool_1-5f2c….sif      another image that would have the same name (team_tool:1)
    .leases/team_tool_1        held while one process makes it
    .tmp-team_tool_1~….sif     a SIF in the making; it gets its name when it is whole
    .old-team_tool_1~….sif     a SIF that was replaced, kept for the jobs that run from it
    .used/team_tool_1.sif      when it was last used, see `sif/use.py`

A `.sif` that somebody put there by hand needs no note. The note is written before its SIF, so that a name is never
without an owner: it decides *whose* the file is, and it speaks of *that* file only as long as the identities agree.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import shutil
import tempfile
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from girder_worker_singularity.errors import (
    ContainerError,
    ConversionStopped,
    ImageNotInStore,
    ImageReferenceInvalid,
    NotEnoughSpace,
    SifDamaged,
    StoreNotWritable,
)
from girder_worker_singularity.image.config import ImageConfig, image_config
from girder_worker_singularity.image.reference import ImageReference, parse_image_reference
from girder_worker_singularity.lease import Holder, Lease, LeaseHeld, LeaseLost
from girder_worker_singularity.sif.convert import ConvertOptions, Source, convert, remove_dead_builds
from girder_worker_singularity.sif.file import SifContents, read_sif
from girder_worker_singularity.sif.note import BY_HAND, SifNote, fsync, note_path, read_note, write_note
from girder_worker_singularity.source.docker_engine import EngineImage, engine_image
from girder_worker_singularity.source.registry_digest import registry_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner

logger = logging.getLogger(__name__)

Policy = Literal["always", "if-not-present", "never"]

LEASES = ".leases"
"""Directory of the leases, each named like the SIF that its holder makes or removes."""

_FOLLOWER_POLL_SECONDS = 0.2
_ATTEMPTS = 3


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


@dataclass(frozen=True)
class StoreOptions:
    """How a store makes what it does not have."""

    convert: ConvertOptions = field(default_factory=ConvertOptions)
    minimum_free_bytes: int = 2 * 1024**3
    """No conversion is started with less free space, in the store or where images are unpacked."""
    keep_replaced_seconds: float = 7 * 24 * 3600.0
    """How long a SIF that was replaced stays on the disk, for jobs that still run from it on other hosts."""
    use_docker_engine: bool = True
    """Take an image from this host's Docker engine if it has it, before asking a registry."""


class AskRegistry(Protocol):
    """Which digest a registry has for an image now, see `registry_digest`."""

    def __call__(
        self,
        reference: ImageReference,
        *,
        plain_http_registries: tuple[str, ...],
        authfile: Path | None,
        environment: Mapping[str, str],
    ) -> str | None:
        """The digest, or None if it is not known."""


class AskEngine(Protocol):
    """Whether the Docker engine of this host has an image, see `engine_image`."""

    def __call__(self, reference: ImageReference) -> EngineImage | None:
        """The image, or None."""


class _Flight:
    """One `ensure` in progress, and those in this process who wait for the same image."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.listeners: list[Callable[[str], None]] = []
        self.sif: Sif | None = None
        self.error: BaseException | None = None

    def tell(self, line: str) -> None:
        for listener in list(self.listeners):
            try:
                listener(line)
            except Exception:
                logger.exception("A listener to a conversion failed and hears no more of it")
                self.listeners.remove(listener)


class SifStore:
    """The SIF files of one directory; safe to use from many threads, processes and hosts at once.

    `build_runner` is where images are converted, if not where everything else runs.
    """

    def __init__(
        self,
        root: Path,
        runner: CommandRunner,
        clock: Clock,
        options: StoreOptions | None = None,
        *,
        build_runner: CommandRunner | None = None,
        ask_registry: AskRegistry = registry_digest,
        ask_engine: AskEngine = engine_image,
    ) -> None:
        self.root = root
        self._runner = runner
        self._build_runner = build_runner or runner
        self._clock = clock
        self._options = options or StoreOptions()
        self._ask_registry = ask_registry
        self._ask_engine = ask_engine
        self._flights: dict[tuple[str, Policy], _Flight] = {}
        self._lock = threading.Lock()

    def find(self, image: str) -> Sif | None:
        """The SIF of this image if the store has it; SifDamaged if it has it but not whole.

        Only reads: no lease, no program, no network.
        """
        reference = parse_image_reference(image)
        path = self._path_of(reference)
        if path is None:
            return self._find_by_digest(reference) if reference.digest else None
        try:
            contents = read_sif(path)
        except FileNotFoundError:  # removed since
            return None
        note = read_note(path)
        digest = note.digest if note is not None and note.identity == contents.identity else None
        return _sif(path, reference, contents, digest or reference.digest)

    def ensure(
        self,
        image: str,
        *,
        policy: Policy = "if-not-present",
        on_progress: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Sif:
        """The SIF of this image, made first if need be; whoever else wants it meanwhile waits for the same one.

        `always` looks whether the registry has a newer image, `never` makes none (ImageNotInStore). A failure
        leaves the SIF in use as it was. Raises ConversionStopped soon after `should_stop` turned true.
        """
        reference = parse_image_reference(image)
        if policy != "always":
            present = self.find(image) if policy == "never" else self._find_whole(image)
            if present is not None:
                self._claim(present)
                return present
            if policy == "never":
                raise ImageNotInStore(f"There is no SIF of {image} in {self.root}.")
        while True:
            sif = self._join_flight(reference, image, policy, on_progress, should_stop)
            if sif is not None:
                return sif

    # -- one conversion per process ---------------------------------------------------------------------------

    def _join_flight(
        self,
        reference: ImageReference,
        image: str,
        policy: Policy,
        on_progress: Callable[[str], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Sif | None:
        """The SIF, from this thread's own work or another's; None if the other one was told to stop."""
        key = (reference.canonical, policy)
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
            if on_progress is not None:
                flight.listeners.append(on_progress)
        if leads:
            return self._lead(flight, key, image, policy, should_stop)
        while not flight.done.wait(_FOLLOWER_POLL_SECONDS):
            if should_stop is not None and should_stop():
                raise ConversionStopped(f"Waiting for the SIF of {image} was stopped.")
        if isinstance(flight.error, ContainerError) and not isinstance(flight.error, ConversionStopped):
            raise flight.error
        return flight.sif

    def _lead(
        self,
        flight: _Flight,
        key: tuple[str, Policy],
        image: str,
        policy: Policy,
        should_stop: Callable[[], bool] | None,
    ) -> Sif:
        try:
            flight.sif = self._ensure_under_lease(image, policy, flight.tell, should_stop)
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()
        return flight.sif

    # -- one conversion per store -----------------------------------------------------------------------------

    def _ensure_under_lease(
        self,
        image: str,
        policy: Policy,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] | None,
    ) -> Sif:
        reference = parse_image_reference(image)
        before = self._find_whole(image)
        for _attempt in range(_ATTEMPTS):
            with self._acquire(reference, should_stop) as lease, lease.kept_alive():
                self._remove_leftovers(reference)
                remove_dead_builds(self._options.convert)
                present = self._find_whole(image)
                if present is not None and self._is_current(present, before, policy):
                    self._claim(present)
                    return present
                try:
                    return self._make(reference, lease, tell, should_stop)
                except LeaseLost as error:  # this process slept for a minute, and somebody else took over
                    tell(f"Looking again for {reference}: {error}")
        raise ConversionStopped(f"Converting {image} was taken over by others {_ATTEMPTS} times.")

    def _acquire(self, reference: ImageReference, should_stop: Callable[[], bool] | None) -> Lease:
        # The lease has the plain name, so that images which compete for one file name also wait for each other.
        path = self.root / LEASES / reference.sif_stem
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = Holder.this_process("SIF converter")
            return Lease.acquire(path, holder, self._clock, should_stop=should_stop)
        except LeaseHeld as error:
            raise ConversionStopped(f"Waiting for the SIF of {reference} was stopped: {error}") from error
        except OSError as error:
            raise self._not_stored(reference, error) from error

    def _is_current(self, present: Sif, before: Sif | None, policy: Policy) -> bool:
        if policy != "always":
            return True
        if before is None or _identity(before.path) != _identity(present.path):
            return True  # made by somebody else while this one waited
        note = read_note(present.path)
        if note is None or note.identity != _identity(present.path):
            return False
        engine = self._engine_image(present.reference)
        if engine is not None:
            return note.image_id == engine.image_id
        return note.digest is not None and note.digest == self._registry_digest(present.reference)

    def _make(
        self,
        reference: ImageReference,
        lease: Lease,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] | None,
    ) -> Sif:
        self._check_space()
        temporary = self.root / f".tmp-{reference.sif_stem}~{uuid.uuid4().hex[:12]}.sif"
        try:
            # A store that cannot be written to is known before the long work. The file stays: where it is made on
            # another host, this one must not remember that there was none.
            temporary.touch()
            note = self._convert(reference, temporary, tell, should_stop)
            fsync(temporary)
            contents = read_sif(temporary)
            return self._publish(reference, temporary, contents, note, lease)
        except OSError as error:
            raise self._not_stored(reference, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _convert(
        self,
        reference: ImageReference,
        temporary: Path,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] | None,
    ) -> SifNote:
        engine = self._engine_image(reference)
        if engine is not None:
            try:
                self._run_convert(reference, temporary, "docker-daemon", tell, should_stop)
            except ConversionStopped:
                raise
            except ContainerError as error:
                tell(f"Not taken from the Docker engine: {error.what}")
            else:
                return SifNote(reference.canonical, "", engine.digest, engine.image_id, "docker-daemon")
        digest = self._registry_digest(reference)
        self._run_convert(reference, temporary, "docker", tell, should_stop, digest)
        return SifNote(reference.canonical, "", digest, None, "docker")

    def _run_convert(
        self,
        reference: ImageReference,
        temporary: Path,
        source: Source,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] | None,
        digest: str | None = None,
    ) -> None:
        tell(f"Converting {reference} into a SIF ...")
        convert(
            reference,
            temporary,
            source=source,
            # Only this host has its Docker engine.
            runner=self._runner if source == "docker-daemon" else self._build_runner,
            options=self._options.convert,
            on_progress=tell,
            should_stop=should_stop,
            digest=digest,
        )

    def _publish(
        self, reference: ImageReference, temporary: Path, contents: SifContents, note: SifNote, lease: Lease
    ) -> Sif:
        path = self._path_for_new(reference)
        final = SifNote(
            canonical=note.canonical,
            identity=contents.identity,
            digest=note.digest,
            image_id=note.image_id,
            source=note.source,
            reference=str(reference),
            converted_at=self._clock.now(),
        )
        lease.check()
        if _identity(path) is not None:
            # On a network file system a file that is replaced is torn away from who has it open on another host.
            os.link(path, self.root / f".old-{path.stem}~{uuid.uuid4().hex[:12]}.sif")
        write_note(path, final)
        temporary.chmod(0o644)
        temporary.rename(path)
        fsync(self.root)
        return _sif(path, reference, contents, note.digest, converted=True)

    # -- names --------------------------------------------------------------------------------------------------

    def _path_of(self, reference: ImageReference) -> Path | None:
        """The file of this image, if there is one; never another image's."""
        plain = self.root / reference.sif_name
        if plain.exists() and self._belongs(plain, reference):
            return plain
        other = self.root / reference.unambiguous_sif_name
        return other if other.exists() else None

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
        stem = ImageReference(reference.registry, reference.repository, None, None).sif_stem
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
                if contents.identity == note.identity:
                    return _sif(path, reference, contents, reference.digest)
        return None

    def _find_whole(self, image: str) -> Sif | None:
        try:
            return self.find(image)
        except SifDamaged:
            return None

    def _claim(self, sif: Sif) -> None:
        """Note whose a SIF is that was put there by hand, so that no other image takes it for its own."""
        if sif.path.name != sif.reference.sif_name or note_path(sif.path).exists():
            return
        note = SifNote(sif.reference.canonical, source=BY_HAND, reference=str(sif.reference))
        with contextlib.suppress(OSError):  # a store that only can be read works as well
            write_note(sif.path, note, replace=False)

    # -- surroundings -------------------------------------------------------------------------------------------

    def _engine_image(self, reference: ImageReference) -> EngineImage | None:
        return self._ask_engine(reference) if self._options.use_docker_engine else None

    def _registry_digest(self, reference: ImageReference) -> str | None:
        options = self._options.convert
        return self._ask_registry(
            reference,
            plain_http_registries=options.plain_http_registries,
            authfile=options.authfile,
            environment={**os.environ, **options.environment},
        )

    def _not_stored(self, reference: ImageReference, error: OSError) -> ContainerError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = NotEnoughSpace if full else StoreNotWritable
        return kind(f"The SIF of {reference} cannot be written to {self.root}: {error.strerror or error}.")

    def _check_space(self) -> None:
        tmp_dir = self._options.convert.tmp_dir or Path(tempfile.gettempdir())
        for what, directory in (("SIF store", self.root), ("build directory", tmp_dir)):
            if not directory.exists():
                continue
            free = shutil.disk_usage(directory).free
            if free < self._options.minimum_free_bytes:
                raise NotEnoughSpace(
                    f"The {what} {directory} has {free // 1024**2} MiB left, "
                    f"less than {self._options.minimum_free_bytes // 1024**2} MiB."
                )

    def _remove_leftovers(self, reference: ImageReference) -> None:
        """Remove what dead converters of this name left: whoever holds the lease knows that they are dead."""
        for leftover in self.root.glob(f".tmp-{glob.escape(reference.sif_stem)}~*"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        oldest = self._clock.now() - self._options.keep_replaced_seconds
        for replaced in self.root.glob(".old-*~*.sif"):
            with contextlib.suppress(OSError):
                if replaced.stat().st_ctime < oldest:
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


def _identity(path: Path) -> str | None:
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
