"""Which SIFs may go, and their going.

`choose` decides and touches nothing; `prune` acts, and looks again before each removal: a job may have come
meanwhile. What cannot be made again is never removed: somebody put it there by hand, or that of which it was made,
an archive say, is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from girder_worker_singularity.holder import Holder
from girder_worker_singularity.lease import Lease, LeaseHeld
from girder_worker_singularity.sif.inventory import StoredSif, inventory, look_at
from girder_worker_singularity.sif.note import note_path
from girder_worker_singularity.sif.shelf import LEASES
from girder_worker_singularity.sif.use import IN_USE_SECONDS, last_used, stamp_path
from girder_worker_singularity.source.docker_engine import engine_image
from girder_worker_singularity.source.local_files import is_still_placed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.source.image_sources import AskEngine

logger = logging.getLogger(__name__)

DAY_SECONDS = 24 * 3600.0
#: Longer than any conversion takes: what is older was left by one that was killed.
_LEFTOVER_SECONDS = 3 * DAY_SECONDS


@dataclass(frozen=True)
class PruneRules:
    """What may go. Without any of the three only what was replaced long ago."""

    unused_seconds: float | None = None
    """SIFs that nobody used for this long."""
    most_bytes: int | None = None
    """The least recently used ones, until all SIFs together are not larger than this."""
    keep_images: frozenset[str] | None = None
    """SIFs of other images than these (canonical references)."""
    archive_dir: Path | None = None
    """Where archives must still be of which SIFs were made, so that these may go."""
    keep_replaced_seconds: float = 7 * DAY_SECONDS
    """How long a file that jobs may still run from stays on the disk under another name."""

    @property
    def removes_sifs(self) -> bool:
        """Whether any SIF may go, and not only what was left over."""
        return (self.unused_seconds, self.most_bytes, self.keep_images) != (None, None, None)


@dataclass(frozen=True)
class Removal:
    """One SIF that may go, and why."""

    sif: StoredSif
    why: str
    at_once: bool
    """Whether its space is free at once; otherwise it is set aside for jobs that a stopped worker may have left."""


@dataclass(frozen=True)
class PruneReport:
    """What was, or would be, done."""

    removed: tuple[Removal, ...] = ()
    spared: tuple[tuple[Removal, str], ...] = ()
    """What was chosen and then left alone, and why."""
    leftovers: tuple[Path, ...] = ()
    """Files of earlier replacements and of killed conversions that were removed."""
    freed_bytes: int = 0
    set_aside_bytes: int = 0
    """Will be free later."""
    left_bytes: int = 0
    """What the SIFs that are left need, those set aside not counted."""
    over_bytes: int = 0
    """By how much that is more than the rules wanted: all that is left is in use, or cannot be made again."""


@dataclass
class _Tally:
    removed: list[Removal] = field(default_factory=list)
    spared: list[tuple[Removal, str]] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    leftover_bytes: int = 0


def choose(sifs: Sequence[StoredSif], rules: PruneRules, now: float) -> list[Removal]:
    """The SIFs that may go by these rules, the least recently used first. Pure."""
    idle = sorted(
        (sif for sif in sifs if sif.can_be_made_again and now - sif.idle_since >= IN_USE_SECONDS),
        key=lambda sif: (sif.idle_since, sif.path.name),
    )
    left = sum(sif.size_bytes for sif in sifs)
    chosen = {}
    for sif in idle:
        why = _why(sif, rules, now)
        if why:
            chosen[sif.path] = why
            left -= sif.size_bytes
    for sif in idle:
        if rules.most_bytes is not None and left > rules.most_bytes and sif.path not in chosen:
            chosen[sif.path] = "least recently used, and the store is too large"
            left -= sif.size_bytes
    return [
        Removal(sif, chosen[sif.path], at_once=now - sif.idle_since >= rules.keep_replaced_seconds)
        for sif in idle
        if sif.path in chosen
    ]


def _why(sif: StoredSif, rules: PruneRules, now: float) -> str:
    if rules.keep_images is not None and not is_among(sif, rules.keep_images):
        return "not among the images to keep"
    if rules.unused_seconds is not None and now - sif.idle_since >= rules.unused_seconds:
        return f"unused for {(now - sif.idle_since) / DAY_SECONDS:.0f} days"
    return ""


def is_among(sif: StoredSif, images: frozenset[str]) -> bool:
    """Whether the SIF is of one of these images; also if that one is named by the digest the SIF is of."""
    if sif.reference is None:
        return True  # whose it is is not known
    by_digest = f"{sif.reference.canonical_repository}@{sif.digest}"
    return sif.reference.canonical in images or by_digest in images


def prune(
    root: Path,
    rules: PruneRules,
    clock: Clock,
    *,
    dry_run: bool = False,
    ask_engine: AskEngine = engine_image,
) -> PruneReport:
    """Removes what may go from the store in this directory, and says what it did; with `dry_run` what it would do.

    Raises OSError if the store cannot be written to.
    """
    sifs = inventory(root)
    if rules.removes_sifs:
        sifs = [_with_its_origin(sif, root, rules, ask_engine) for sif in sifs]
    tally = _Tally()
    _remove_leftovers(root, rules, clock, tally, dry_run=dry_run)
    for removal in choose(sifs, rules, clock.now()) if rules.removes_sifs else ():
        objection = "" if dry_run else _remove(root, removal, clock)
        if objection:
            tally.spared.append((removal, objection))
        else:
            tally.removed.append(removal)
    left = sum(sif.size_bytes for sif in sifs) - sum(each.sif.size_bytes for each in tally.removed)
    return PruneReport(
        removed=tuple(tally.removed),
        spared=tuple(tally.spared),
        leftovers=tuple(tally.leftovers),
        freed_bytes=tally.leftover_bytes + sum(each.sif.size_bytes for each in tally.removed if each.at_once),
        set_aside_bytes=sum(each.sif.size_bytes for each in tally.removed if not each.at_once),
        left_bytes=left,
        over_bytes=max(0, left - rules.most_bytes) if rules.most_bytes is not None else 0,
    )


def _with_its_origin(sif: StoredSif, root: Path, rules: PruneRules, ask_engine: AskEngine) -> StoredSif:
    """The SIF, which cannot be made again if that is gone of which it was made."""
    if not sif.can_be_made_again:
        return sif
    is_there = is_still_placed(sif.source, sif.reference, store=root, archive_dir=rules.archive_dir)
    if sif.source == "docker-daemon" and sif.digest is None:  # with a digest, a registry has it
        is_there = sif.reference is not None and ask_engine(sif.reference) is not None
    return sif if is_there else replace(sif, can_be_made_again=False)


def _remove(root: Path, removal: Removal, clock: Clock) -> str:
    """Removes one SIF; the answer is empty, or why it was left alone."""
    path = removal.sif.path
    reference = removal.sif.reference
    is_named_so = reference is not None and path.name in (
        reference.sif_name,
        reference.unambiguous_sif_name,
    )
    lease_path = root / LEASES / (reference.sif_stem if reference is not None and is_named_so else path.stem)
    lease_path.parent.mkdir(exist_ok=True)
    try:
        # The lease under which this name is converted: none of both can surprise the other.
        lease = Lease.acquire(lease_path, Holder.this_process("prune"), clock, wait_seconds=0)
    except LeaseHeld:
        return "it is being converted"
    with lease:
        return _remove_under_lease(removal, clock)


def _remove_under_lease(removal: Removal, clock: Clock) -> str:
    path = removal.sif.path
    try:
        if look_at(path) != removal.sif:
            return "it was used or replaced a moment ago"
    except FileNotFoundError:
        return "somebody else removed it"
    # Another name first: a container that runs from it keeps its file, also on another host of a network file system.
    aside = path.with_name(f".old-{path.stem}~{uuid.uuid4().hex[:12]}.sif")
    path.rename(aside)
    if _is_in_use(path, clock):  # `use.take` stamps first and then looks whether the file is there
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
        return "it was used a moment ago"
    note_path(path).unlink(missing_ok=True)
    stamp_path(path).unlink(missing_ok=True)
    if removal.at_once:
        aside.unlink()
    logger.info("The SIF %s is removed: %s", path, removal.why)
    return ""


def _is_in_use(path: Path, clock: Clock) -> bool:
    used = last_used(path)
    return used is not None and clock.now() - used < IN_USE_SECONDS


def _remove_leftovers(root: Path, rules: PruneRules, clock: Clock, tally: _Tally, *, dry_run: bool) -> None:
    now = clock.now()
    for pattern, keep_seconds in (
        (".old-*~*.sif", rules.keep_replaced_seconds),
        (".tmp-*~*", _LEFTOVER_SECONDS),
        (f"{LEASES}/.*.holder-*", _LEFTOVER_SECONDS),  # those of living holders are written every few seconds
        (f"{LEASES}/.*.broken-*", _LEFTOVER_SECONDS),
    ):
        for path in sorted(root.glob(pattern)):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                # The time of its last renaming, which is when it was replaced.
                if now - max(status.st_ctime, status.st_mtime) < keep_seconds:
                    continue
                if not dry_run:
                    path.unlink()
                tally.leftovers.append(path)
                tally.leftover_bytes += status.st_size if status.st_nlink == 1 else 0
