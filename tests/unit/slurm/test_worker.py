"""The worker's own thread: its lease is refreshed whatever its housekeeping waits for."""

from __future__ import annotations

import threading
from dataclasses import fields
from types import SimpleNamespace

from girder_worker_slurm import worker
from tests.unit.slurm.waiting import wait_until


def test_a_worker_whose_housekeeping_waits_for_slurm_still_shows_that_it_lives(monkeypatch):
    """scancel of a frozen controller takes three minutes: others took the lease for stale, and its jobs over."""
    monkeypatch.setattr(worker, "_HOUSEKEEPING_SECONDS", 0.01)
    monkeypatch.setattr(worker, "REFRESH_SECONDS", 0.01, raising=False)
    may_go, waits, refreshed = threading.Event(), threading.Event(), []
    nothing = SimpleNamespace(
        start=lambda *_: None, stop=lambda: None, close=lambda: None, close_idle=lambda: None
    )
    conversions = SimpleNamespace(end_abandoned=lambda: (waits.set(), may_go.wait(10)))
    parts = dict.fromkeys((field.name for field in fields(worker.SlurmWorker)), nothing)
    root = SimpleNamespace(own_records=list, orphaned_records=lambda _clock: (), path="/jobs", worker_id="w1")
    lease = SimpleNamespace(refresh=lambda: refreshed.append(1), release=lambda: None)
    retention = SimpleNamespace(is_due=lambda: False, look_after=lambda: None)
    made = worker.SlurmWorker(
        **{
            **parts,
            "root": root,
            "lease": lease,
            "retention": retention,
            "image_retention": retention,
            "removed_images": None,
            "conversions": conversions,
            "accounting": None,
        }
    )
    made.start()
    try:
        assert waits.wait(10)
        seen = len(refreshed)
        wait_until(lambda: len(refreshed) > seen + 3, lambda: refreshed)
    finally:
        may_go.set()
        made.stop()
