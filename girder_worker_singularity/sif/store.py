"""Where SIF files live: one per image, made once whoever asks, and found again by looking at one name.

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
import errno
import glob
import logging
import os
import shutil
import tempfile
import threading
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from girder_worker_singularity.errors import (
    ContainerError,
    ConversionStopped,
    ImageNotInStore,
    ImageReferenceInvalid,
    NotEnoughSpace,
    RegistryUnreachable,
    SifDamaged,
    StoreNotWritable,
)
from girder_worker_singularity.image.config import ImageConfig, image_config
from girder_worker_singularity.image.reference import ImageReference, parse_image_reference
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.lease import Holder, Lease, LeaseHeld, LeaseLost
from girder_worker_singularity.sif.convert import ConvertOptions, remove_dead_builds
from girder_worker_singularity.sif.file import SifContents, read_sif
from girder_worker_singularity.sif.make import SifMaker
from girder_worker_singularity.sif.note import BY_HAND, SifNote, fsync, note_path, read_note, write_note
from girder_worker_singularity.source.docker_engine import engine_image
from girder_worker_singularity.source.image_sources import ImageSources, SourceOptions
from girder_worker_singularity.source.registry_digest import registry_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.source.image_sources import AskEngine, AskRegistry

logger = logging.getLogger(__name__)

Policy = Literal["always", "if-not-present", "if-newer", "never"]

LEASES = ".leases"
"""Directory of the leases, each named like the SIF that its holder makes or removes."""

_FOLLOWER_POLL_SECONDS = 0.2
_ATTEMPTS = 3
_MADE_ELSEWHERE = frozenset({BY_HAND, "oras", "library", ""})


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
    sources: SourceOptions = field(default_factory=SourceOptions)
    rules: ImageRules = field(default_factory=ImageRules)
    pull_policy: Policy | None = None
    """Counts instead of what is asked for."""
    verify_signatures: bool = False
    """Use a SIF that was made elsewhere only if a key that is trusted here signed it."""


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
        options = options or StoreOptions()
        sources = options.sources
        environment = {**options.convert.environment, **sources.proxies.environment}
        accounts = replace(
            sources.credentials,
            authfile=sources.credentials.authfile or options.convert.authfile,
            environment={**os.environ, **environment, **sources.credentials.environment},
        )
        self.root = root
        self._clock = clock
        self._options = options
        self._maker = SifMaker(
            ImageSources(
                root,
                runner,
                replace(sources, credentials=accounts),
                plain_http_registries=options.convert.plain_http_registries,
                ask_registry=ask_registry,
                ask_engine=ask_engine,
            ),
            runner,
            replace(options.convert, environment=environment),
            build_runner=build_runner,
            verify_signatures=options.verify_signatures,
        )
        self._flights: dict[tuple[str, Policy], _Flight] = {}
        self._lock = threading.Lock()

    def find(self, image: str) -> Sif | None:
        """The SIF of this image if the store has it; SifDamaged if it has it but not whole.

        Only reads: no lease, no program, no network. A SIF whose signature is still to be checked counts as not there.
        Raises ImageNotAllowed.
        """
        sif = self._look(self._allowed(image))
        return sif if sif is not None and self._is_trusted(sif.path) else None

    def find_for(self, image: str, policy: str) -> Sif | None:
        """The SIF if a run with this policy may take it with nobody being asked; otherwise call `ensure`.

        One that is damaged is not taken: `ensure` makes it anew, or says what is wrong with it.
        """
        if (self._options.pull_policy or policy) in ("always", "if-newer"):
            return None
        try:
            return self.find(image)
        except SifDamaged:
            return None

    def ensure(
        self,
        image: str,
        *,
        policy: Policy = "if-not-present",
        on_progress: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Sif:
        """The SIF of this image, made first if need be; whoever else wants it meanwhile waits for the same one.

        `always` makes it anew unless it is known to be current. `if-newer` makes it anew only if it is known that the
        tag moved. `never` makes none (ImageNotInStore). A failure leaves the SIF in use as it was. Raises
        ImageNotAllowed before anything else, SignatureInvalid, ConversionStopped soon after `should_stop` turned true,
        and what making it raises.
        """
        reference = self._allowed(image)
        policy = self._options.pull_policy or policy
        if policy in ("never", "if-not-present"):
            present = self._look(reference) if policy == "never" else self._look_whole(reference)
            if present is not None:
                return self._taken(present)
            if policy == "never":
                raise ImageNotInStore(f"There is no SIF of {image} in {self.root}.")
        while True:
            sif = self._join_flight(reference, image, policy, on_progress, should_stop)
            if sif is not None:
                return sif

    def _allowed(self, image: str) -> ImageReference:
        reference = parse_image_reference(image)
        self._options.rules.check(self._options.sources.names.completed(reference))
        return reference

    def _look(self, reference: ImageReference) -> Sif | None:
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

    def _look_whole(self, reference: ImageReference) -> Sif | None:
        try:
            return self._look(reference)
        except SifDamaged:
            return None

    # -- SIFs that were made elsewhere ------------------------------------------------------------------------

    def _taken(self, sif: Sif) -> Sif:
        """The SIF, now known to be this image's and its signature accepted; raises SignatureInvalid."""
        self._claim(sif)
        if not self._is_trusted(sif.path):
            identity = _identity(sif.path)
            self._maker.verify(sif.reference, sif.path)
            note = read_note(sif.path)
            if note is not None and identity is not None and identity == _identity(sif.path):
                with contextlib.suppress(OSError):  # then it is checked again the next time
                    write_note(sif.path, replace(note, verified=identity))
        return sif

    def _is_trusted(self, path: Path) -> bool:
        if not self._options.verify_signatures:
            return True
        note, identity = read_note(path), _identity(path)
        if note is None or identity is None:
            return False
        made_here = note.identity == identity and note.source not in _MADE_ELSEWHERE
        return made_here or note.verified == identity

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
        # As it is written: what a site completes (its own registry or tag for bare names) is not in `canonical`.
        key = (str(reference), policy)
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
        before = self._look_whole(reference)
        for _attempt in range(_ATTEMPTS):
            with self._acquire(reference, should_stop) as lease, lease.kept_alive():
                self._remove_leftovers(reference)
                remove_dead_builds(self._options.convert)
                present = self._look_whole(reference)
                if present is not None and self._is_current(present, before, policy, tell):
                    return self._taken(present)
                try:
                    return self._make(reference, lease, tell, should_stop)
                except LeaseLost as error:  # this process slept for a minute, and somebody else took over
                    tell(f"Looking again for {reference}: {error}")
                except RegistryUnreachable as error:
                    if policy != "if-newer" or present is None:
                        raise
                    _say(tell, f"The SIF that is there is used for {reference}: {error.what}")
                    return self._taken(present)
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

    def _is_current(
        self, present: Sif, before: Sif | None, policy: Policy, tell: Callable[[str], None]
    ) -> bool:
        if policy == "if-not-present":
            return True
        if before is None or _identity(before.path) != _identity(present.path):
            return True  # made by somebody else while this one waited
        note = read_note(present.path)
        if note is None or note.identity != _identity(present.path):
            return policy == "if-newer"  # put there by hand: nobody knows of what it was made
        is_current = self._maker.is_current(note, present.reference)
        if is_current is None and policy == "if-newer":
            _say(
                tell,
                f"Whether {present.reference} is newer elsewhere is not known now; the SIF that is there is used.",
            )
            return True
        return bool(is_current)

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
            note = self._maker.make(reference, temporary, tell, should_stop)
            fsync(temporary)
            contents = read_sif(temporary)
            return self._publish(reference, temporary, contents, note, lease)
        except OSError as error:
            raise self._not_stored(reference, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(
        self, reference: ImageReference, temporary: Path, contents: SifContents, note: SifNote, lease: Lease
    ) -> Sif:
        path = self._path_for_new(reference)
        final = replace(
            note,
            identity=contents.identity,
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
                if contents.identity == note.identity:
                    return _sif(path, reference, contents, reference.digest)
        return None

    def _claim(self, sif: Sif) -> None:
        """Note whose a SIF is that was put there by hand, so that no other image takes it for its own."""
        if sif.path.name != sif.reference.sif_name or note_path(sif.path).exists():
            return
        note = SifNote(sif.reference.canonical, source=BY_HAND, reference=str(sif.reference))
        with contextlib.suppress(OSError):  # a store that only can be read works as well
            write_note(sif.path, note, replace=False)

    # -- surroundings -------------------------------------------------------------------------------------------

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


def _say(tell: Callable[[str], None], line: str) -> None:
    """Tells the listeners, and the log in case there is none."""
    logger.warning("%s", line)
    tell(line)


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
