"""How long the uploads of one job may keep a thread that others wait for.

The outputs of a job may be a hundred thousand files, and Girder takes some dozens a second. A few of such jobs would
keep everybody else's outputs back for hours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_slurm.errors import TurnOver

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.clock import Clock

TURN_SECONDS = 10.0


class UploadTurn:
    """One turn of one job: it ends only after something new has come to Girder, and where the job can go on."""

    def __init__(self, clock: Clock, check: Callable[[], None], others_wait: Callable[[], bool]) -> None:
        self._clock = clock
        self._check = check
        self._others_wait = others_wait
        self._began = clock.monotonic()
        self._found_place_at: float | None = None

    def progressed(self) -> None:
        """Something is in Girder now, or begun there, that was not before."""
        if self._found_place_at is None:
            self._found_place_at = self._clock.monotonic()

    def check(self) -> None:
        """Called between two requests; raises TurnOver, and what the job's own check raises."""
        self._check()
        if self._found_place_at is None or not self._others_wait():
            return
        # To find the place again among 100,000 files takes seconds: never longer than what is done there.
        longest = max(TURN_SECONDS, self._found_place_at - self._began)
        if self._clock.monotonic() - self._found_place_at >= longest:
            raise TurnOver("Others wait to bring their outputs.")
