"""Processes that make, use and prune the SIFs of one store all at once, in days that pass in a moment.

    python -m tests.support.store_crowd ROLE STORE ARCHIVES UNTIL IMAGE...

Roles: `maker` converts what is missing, `user` takes SIFs as a job does and looks that they stay as long as they are
in use, `pruner` removes what nobody used for a day. Each prints one JSON object at its end.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from girder_worker_singularity import ConvertOptions, LocalCommandRunner, SifStore, StoreOptions, SystemClock
from girder_worker_singularity.sif import prune as pruning
from girder_worker_singularity.sif.use import IN_USE_SECONDS, take
from girder_worker_singularity.source.image_sources import SourceOptions

_DAY_LASTS = 0.25
"""Seconds of ours that a day of the store lasts."""
_SOONER = 0.7
"""The part of its day in use for which a user relies on its SIF: it is a process that may be held up, too."""


class _FastClock(SystemClock):
    """A day passes in a moment."""

    def __init__(self) -> None:
        self._start = time.time() // 10_000 * 10_000

    def now(self) -> float:
        return self._start + (time.time() - self._start) * IN_USE_SECONDS / _DAY_LASTS


def _store(root: Path, archives: Path) -> SifStore:
    convert = ConvertOptions(tmp_dir=archives / "build")
    options = StoreOptions(
        convert,
        minimum_free_bytes=0,
        keep_replaced_seconds=1e12,
        sources=SourceOptions(places=("archive",), archive_dir=archives),
    )
    return SifStore(root, LocalCommandRunner(), _FastClock(), options)


def _make(root: Path, archives: Path, until: float, images: list[str]) -> dict[str, int]:
    store, made = _store(root, archives), 0
    while time.time() < until:
        for image in images:
            made += store.ensure(image).converted
        time.sleep(0.005)
    return {"made": made}


def _use(root: Path, archives: Path, until: float, images: list[str]) -> dict[str, int]:
    store, clock = _store(root, archives), _FastClock()
    taken, missed, too_late = 0, 0, 0
    while time.time() < until:
        began = clock.now()
        sif = store.find(random.choice(images))  # noqa: S311
        if sif is None or not take(sif.path, clock):
            missed += 1
            time.sleep(0.002)
            continue
        while clock.now() < began + _SOONER * IN_USE_SECONDS:
            is_there = sif.path.exists()
            if clock.now() >= began + _SOONER * IN_USE_SECONDS:
                too_late += 1  # this process was held up in between, so its look says nothing
                break
            assert is_there, f"{sif.path} vanished while it was in use"
            time.sleep(0.002)
        taken += 1
        time.sleep(random.random() * 2 * _DAY_LASTS)  # noqa: S311 - nobody uses it for a while
    return {"taken": taken, "missed": missed, "too_late": too_late}


def _prune(root: Path, archives: Path, until: float, _images: list[str]) -> dict[str, int]:
    # What is set aside and what is half made is aged by the file system's clock, for which these days are years.
    pruning._LEFTOVER_SECONDS = 1e12
    rules = pruning.PruneRules(IN_USE_SECONDS, keep_replaced_seconds=1e12, archive_dir=archives)
    removed, spared, rounds = 0, 0, 0
    while time.time() < until:
        report = pruning.prune(root, rules, _FastClock())
        assert report.set_aside_bytes == sum(each.sif.size_bytes for each in report.removed)
        assert (report.freed_bytes, report.leftovers) == (0, ())
        removed += len(report.removed)
        spared += len(report.spared)
        rounds += 1
        time.sleep(0.002)
    return {"removed": removed, "spared": spared, "rounds": rounds}


if __name__ == "__main__":
    role, store, archives, until = sys.argv[1:5]
    work = {"maker": _make, "user": _use, "pruner": _prune}[role]
    print(json.dumps(work(Path(store), Path(archives), float(until), sys.argv[5:])))
