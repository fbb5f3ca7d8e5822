"""The cluster's partitions, asked for once in a while and remembered in between."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from girder_worker_slurm.errors import ClusterUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.options.partitions import Partition

_FRESH_SECONDS = 600.0


class PartitionList:
    """Calling it gives the partitions; one command every ten minutes, however many ask."""

    def __init__(self, ask: Callable[[], Mapping[str, Partition]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Mapping[str, Partition] = {}
        self._asked_at: float | None = None

    def __call__(self) -> Mapping[str, Partition]:
        """What Slurm said last; raises ClusterUnreachable only if it never said anything."""
        with self._lock:
            now = self._clock.monotonic()
            if self._asked_at is None or now - self._asked_at >= _FRESH_SECONDS:
                try:
                    self._known = self._ask()
                except ClusterUnreachable:
                    # A controller that is away has the same partitions when it is back.
                    if self._asked_at is None:
                        raise
                self._asked_at = now
            return self._known
