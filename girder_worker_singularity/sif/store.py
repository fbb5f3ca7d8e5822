"""Images as SIF files: one per image, made once whoever asks, and found again by looking at one name.

What is asked for and when it is made anew is decided here; `shelf.py` knows the files, `flight.py` those who wait in
this process, a lease on the directory those of other processes and hosts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from girder_worker_singularity.errors import (
    ContainerError,
    ConversionStopped,
    ImageNotInStore,
    NotEnoughSpace,
    RegistryUnreachable,
    SifDamaged,
    StoreNotWritable,
)
from girder_worker_singularity.holder import Holder
from girder_worker_singularity.image.reference import ImageReference, parse_image_reference
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.lease import Lease, LeaseHeld, LeaseLost
from girder_worker_singularity.sif.checksum import sha256_of
from girder_worker_singularity.sif.convert import FULL, ConvertOptions, remove_dead_builds
from girder_worker_singularity.sif.file import read_sif
from girder_worker_singularity.sif.flight import Flights
from girder_worker_singularity.sif.make import SifMaker
from girder_worker_singularity.sif.note import BY_HAND, fsync, read_note, write_note
from girder_worker_singularity.sif.shelf import LEASES, Shelf, Sif, identity_of
from girder_worker_singularity.source.docker_engine import engine_image
from girder_worker_singularity.source.image_sources import ImageSources, SourceOptions
from girder_worker_singularity.source.registry_digest import registry_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.source.image_sources import AskEngine, AskLayers, AskRegistry

logger = logging.getLogger(__name__)

Policy = Literal["always", "if-not-present", "if-newer", "never"]

_ATTEMPTS = 3
_MADE_ELSEWHERE = frozenset({BY_HAND, "oras", "library", ""})


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
        ask_layers: AskLayers | None = None,
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
                ask_layers=ask_layers,
            ),
            runner,
            replace(options.convert, environment=environment),
            build_runner=build_runner,
            verify_signatures=options.verify_signatures,
        )
        self._shelf = Shelf(root)
        self._flights = Flights[Sif]()

    def find(self, image: str) -> Sif | None:
        """The SIF of this image if the store has it; SifDamaged if it has it but not whole.

        Only reads: no lease, no program, no network. A SIF whose signature is still to be checked counts as not there.
        Raises ImageNotAllowed.
        """
        sif = self._shelf.look(self._allowed(image))
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
            present = self._shelf.look(reference) if policy == "never" else self._shelf.look_whole(reference)
            if present is not None:
                return self._taken(present)
            if policy == "never":
                other = self._shelf.taken_by_another(reference)
                raise ImageNotInStore(
                    " ".join([f"There is no SIF of {image} in {self.root}.", other]).rstrip()
                )
        while True:
            sif = self._flights.join(
                # As it is written: what a site completes (its own registry or tag for bare names) is not in `canonical`.
                (str(reference), policy),
                lambda tell: self._ensure_under_lease(image, policy, tell, should_stop),
                what=image,
                on_progress=on_progress,
                should_stop=should_stop,
            )
            if sif is not None:
                return sif

    def adopt(self, image: str) -> Path:
        """Notes that the SIF of this image's file name, put there by hand, is this image; see `Shelf.adopt`."""
        reference = self._allowed(image)
        with self._acquire(reference, None):
            return self._shelf.adopt(reference)

    def _allowed(self, image: str) -> ImageReference:
        reference = parse_image_reference(image)
        self._options.rules.check(self._options.sources.names.completed(reference))
        return reference

    # -- SIFs that were made elsewhere ------------------------------------------------------------------------

    def _taken(self, sif: Sif) -> Sif:
        """The SIF, now known to be this image's and its signature accepted; raises SignatureInvalid."""
        self._shelf.claim(sif)
        if not self._is_trusted(sif.path):
            identity = identity_of(sif.path)
            self._maker.verify(sif.reference, sif.path)
            note = read_note(sif.path)
            if note is not None and identity is not None and identity == identity_of(sif.path):
                with contextlib.suppress(OSError):  # then it is checked again the next time
                    write_note(sif.path, replace(note, verified=identity))
        return sif

    def _is_trusted(self, path: Path) -> bool:
        if not self._options.verify_signatures:
            return True
        note, identity = read_note(path), identity_of(path)
        if note is None or identity is None:
            return False
        made_here = note.identity == identity and note.source not in _MADE_ELSEWHERE
        return made_here or note.verified == identity

    # -- one conversion per store -----------------------------------------------------------------------------

    def _ensure_under_lease(
        self,
        image: str,
        policy: Policy,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool] | None,
    ) -> Sif:
        reference = parse_image_reference(image)
        before = self._shelf.look_whole(reference)
        for _attempt in range(_ATTEMPTS):
            try:
                acquired = self._acquire(reference, should_stop)
            except StoreNotWritable as error:
                return self._taken(self._usable(before, policy, tell, error))
            with acquired as lease, lease.kept_alive():
                self._shelf.remove_leftovers(
                    reference, replaced_before=self._clock.now() - self._options.keep_replaced_seconds
                )
                remove_dead_builds(self._options.convert)
                present = self._shelf.look_whole(reference)
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

    def _usable(
        self, present: Sif | None, policy: Policy, tell: Callable[[str], None], error: StoreNotWritable
    ) -> Sif:
        """The SIF of a store that can only be read, if this policy may take it as it is; else raises that error."""
        if present is None:
            raise error
        # Nobody has made it anew meanwhile, so only what the places of the image say counts.
        if self._is_current(present, present, policy, tell):
            return present
        if policy == "if-newer":
            _say(tell, f"The SIF that is there is used for {present.reference}: {error.what}")
            return present
        raise StoreNotWritable(
            f"{error.what} The SIF that is there is, or may be, older than the image.",
            remedy="Let the worker's user write there. To use the SIFs that are there as they are, set `pull_policy` in"
            " [singularity] to `if-newer` or `never`.",
        ) from error

    def _is_current(
        self, present: Sif, before: Sif | None, policy: Policy, tell: Callable[[str], None]
    ) -> bool:
        if policy == "if-not-present":
            return True
        if before is None or identity_of(before.path) != identity_of(present.path):
            return True  # made by somebody else while this one waited
        note = read_note(present.path)
        if note is None or note.identity != identity_of(present.path):
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
        other = self._shelf.taken_by_another(reference)
        if other:
            _say(tell, other)
        self._check_space()
        temporary = self.root / f".tmp-{reference.sif_stem}~{uuid.uuid4().hex[:12]}.sif"
        try:
            # A store that cannot be written to is known before the long work. The file stays: where it is made on
            # another host, this one must not remember that there was none.
            temporary.touch()
            note = self._maker.make(reference, temporary, tell, should_stop)
            fsync(temporary)
            contents = read_sif(temporary)
            note = replace(note, sha256=sha256_of(temporary))
            return self._shelf.publish(
                reference, temporary, contents, note, now=self._clock.now(), check=lease.check
            )
        except OSError as error:
            raise self._not_stored(reference, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    # -- surroundings -------------------------------------------------------------------------------------------

    def _not_stored(self, reference: ImageReference, error: OSError) -> ContainerError:
        kind = NotEnoughSpace if error.errno in FULL else StoreNotWritable
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


def _say(tell: Callable[[str], None], line: str) -> None:
    """Tells the listeners, and the log in case there is none."""
    logger.warning("%s", line)
    tell(line)
