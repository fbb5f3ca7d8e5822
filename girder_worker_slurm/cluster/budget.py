"""One budget of scheduler calls for all parts of the worker.

A controller that times out is asked less: the rate is halved, down to four calls a minute, and grows back
slowly while calls succeed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from girder_worker_singularity.clock import Clock

_FLOOR_PER_SECOND = 4 / 60


class CallBudget:
    """Hands out scheduler calls, at most so many a second."""

    def __init__(self, per_second: float, clock: Clock) -> None:
        self._limit = max(per_second, _FLOOR_PER_SECOND)
        self._rate = self._limit
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock.monotonic()

    @property
    def calls_per_second(self) -> float:
        """The rate allowed right now."""
        return self._rate

    def take(self) -> None:
        """Returns when one call may be made; blocks the calling thread until then."""
        with self._lock:
            now = self._clock.monotonic()
            # A burst of one second's worth is allowed after a quiet time.
            start = max(self._next, now - 1.0)
            self._next = start + 1.0 / self._rate
            wait = start - now
        if wait > 0:
            self._clock.sleep(wait)

    def succeeded(self) -> None:
        """A call was answered: the rate may grow back."""
        with self._lock:
            self._rate = min(self._limit, self._rate * 1.1)

    def failed(self) -> None:
        """A call timed out or was refused for load: ask half as often."""
        with self._lock:
            self._rate = max(_FLOOR_PER_SECOND, self._rate / 2)
