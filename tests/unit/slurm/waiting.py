"""Waiting for what other threads do."""

from __future__ import annotations

from time import monotonic, sleep


def wait_until(condition, seen):
    until = monotonic() + 10
    while not condition():
        assert monotonic() < until, seen()
        sleep(0.005)
