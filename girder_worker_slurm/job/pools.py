"""Small pools of threads that never hold a worker back from ending.

`concurrent.futures` waits for its threads at exit; an upload of an hour would keep a stopping worker alive. Here
threads are daemons: what they were doing is done again after the restart, as after a crash.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.job.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import Callable


class Pool:
    """So many threads that run what is submitted: each user's work in order, the users in turn."""

    def __init__(self, name: str, threads: int) -> None:
        self._work: FairQueue[tuple[Callable[..., None], tuple[Any, ...]]] = FairQueue()
        self._has_work = threading.Condition()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"gw-{name}-{number}", daemon=True).start()

    def submit(self, work: Callable[..., None], *arguments: Any, user: str = "") -> None:
        """Runs `work` as soon as a thread is free and it is this user's turn; it must not raise."""
        with self._has_work:
            self._work.put(user, (work, arguments))
            self._has_work.notify()

    def is_waited_for(self) -> bool:
        """Whether there is more to do than there are threads."""
        return bool(self._work)

    def _run(self) -> None:
        while True:
            with self._has_work:
                self._has_work.wait_for(lambda: bool(self._work))
                found = self._work.take()
            if found is not None:
                work, arguments = found
                work(*arguments)
