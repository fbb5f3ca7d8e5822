"""How long ended jobs stay on disk, and the SIFs that nobody uses."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import ContainerError
from girder_worker_singularity.sif.inventory import inventory
from girder_worker_singularity.sif.prune import PruneRules, prune
from girder_worker_singularity.sif.use import note_use
from girder_worker_slurm.errors import RecordDamaged
from girder_worker_slurm.job.state import EarlierAttempt, JobState, Outcome
from girder_worker_slurm.records.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.cluster.run_files import RunFiles
    from girder_worker_slurm.records.jobs_root import JobsRoot

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 3600.0
_DAY = 86400.0


class Retention:
    """Removes record, run directory and log of jobs that ended long enough ago."""

    def __init__(
        self,
        root: JobsRoot,
        runs_of: Callable[[JobState | EarlierAttempt], RunFiles],
        clock: Clock,
        *,
        keep_days: float,
        keep_failed_days: float,
    ) -> None:
        self._root = root
        self._runs_of = runs_of
        self._clock = clock
        self._keep_days = keep_days
        self._keep_failed_days = keep_failed_days
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether it is time to look again."""
        return self._clock.monotonic() >= self._next

    def remove_old(self) -> int:
        """Looks once an hour; returns how many jobs it removed."""
        now = self._clock.monotonic()
        if now < self._next:
            return 0
        self._next = now + _EVERY_SECONDS
        self._root.remove_leftovers(self._clock)
        removed = 0
        for name in os.listdir(self._root.ended):
            try:
                removed += self._remove_if_old(self._root.ended / name)
            except OSError as error:
                logger.warning("The ended job %s cannot be removed: %s", name, error)
        return removed

    def _remove_if_old(self, path: Path) -> bool:
        try:
            # The last entry is the end; nothing is written to the record afterwards.
            ended_at = (path / "state.jsonl").stat().st_mtime
            if self._clock.now() - ended_at < min(self._keep_days, self._keep_failed_days) * _DAY:
                return False
            record = Record.load(path, worker_id=self._root.worker_id)
        except (OSError, RecordDamaged):
            return False
        verdict = record.state.verdict
        is_good = verdict is not None and verdict.outcome is Outcome.SUCCESS
        if self._clock.now() - ended_at < (self._keep_days if is_good else self._keep_failed_days) * _DAY:
            return False
        state = record.state
        if state.owes_outputs:
            logger.warning(
                "Job %s: its outputs, which Girder never took, are removed after %g days (keep_failed_days)",
                record.task_id,
                self._keep_failed_days,
            )
        attempts: tuple[JobState | EarlierAttempt, ...] = (state, *state.earlier)
        for attempt in attempts:
            if attempt.token:
                runs = self._runs_of(attempt)
                # What came after its end, as from a second copy: with the run directory it goes, in any user's spool.
                for event in runs.events(attempt.token.__eq__):
                    runs.keep(event)
                runs.remove(attempt.token)
            if attempt.log_path:
                self._runs_of(attempt).remove_log(Path(attempt.log_path))
        shutil.rmtree(path, ignore_errors=True)
        logger.info("Job %s ended long ago; its record and log are removed", record.task_id)
        return True


class ImageRetention:
    """Stamps the SIFs that live jobs run from, so that nobody removes them, and removes what nobody uses."""

    def __init__(
        self, store: Path, clock: Clock, rules: PruneRules, *, sifs_in_use: Callable[[], set[str]]
    ) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules
        self._sifs_in_use = sifs_in_use
        self._next = 0.0

    def look_after(self) -> int:
        """Looks once an hour; returns how many SIFs it removed. Raises OSError if the store cannot be written to."""
        now = self._clock.monotonic()
        if now < self._next:
            return 0
        self._next = now + _EVERY_SECONDS
        # First: after a long stop of this worker its jobs' SIFs look unused.
        for sif in self._sifs_in_use():
            note_use(Path(sif), self._clock)
        if not self._rules.removes_sifs:
            return 0
        report = prune(self._store, self._rules, self._clock)
        if report.over_bytes:
            logger.warning(
                "The SIFs in %s are %d bytes larger than max_store_bytes: all that is left is in use or could not be made again",
                self._store,
                report.over_bytes,
            )
        return len(report.removed)


class RemovedImages:
    """Removes the SIFs of images that were ingested here and that Girder has no more.

    What was never ingested, for `docker_run` say, is not on Girder's list and stays.
    """

    def __init__(
        self,
        store: Path,
        descriptions: Path,
        clock: Clock,
        *,
        listed: Callable[[], frozenset[str]],
        archive_dir: Path | None = None,
    ) -> None:
        self._store = store
        #: What was ingested left a file here, named as its SIF.
        self._descriptions = descriptions
        self._clock = clock
        self._listed = listed
        self._archive_dir = archive_dir
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def look_after(self) -> None:
        """Has Girder asked once an hour, by a thread of its own: whoever calls has a lease to keep."""
        now = self._clock.monotonic()
        if now < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = now + _EVERY_SECONDS
        self._thread = threading.Thread(target=self._look, name="gw-removed-images", daemon=True)
        self._thread.start()

    def remove(self) -> int:
        """Asks Girder; returns how many SIFs were removed. Raises ContainerError, OSError."""
        listed = self._listed()
        if not listed:
            logger.warning("Girder lists no images at all: no SIF is removed for that")
            return 0
        others = {
            sif.reference.canonical
            for sif in inventory(self._store)
            if sif.reference is not None and not self._description_of(sif.path).exists()
        }
        rules = PruneRules(keep_images=listed | others, archive_dir=self._archive_dir)
        report = prune(self._store, rules, self._clock)
        for removal in report.removed:
            # If the image comes back in another way, it is none that was ingested.
            self._description_of(removal.sif.path).unlink(missing_ok=True)
        return len(report.removed)

    def _description_of(self, sif: Path) -> Path:
        return self._descriptions / f"{sif.name}.json"

    def _look(self) -> None:
        try:
            self.remove()
        except (ContainerError, OSError) as error:
            logger.warning("SIFs of images that were removed from Girder stay: %s", error)
        except Exception:
            logger.exception("SIFs of images that were removed from Girder stay")
