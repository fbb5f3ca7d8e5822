"""Small pools of threads that never hold a worker back from ending.

`concurrent.futures` waits for its threads at exit; an upload of an hour would keep a stopping worker alive. Here
threads are daemons: what they were doing is done again after the restart, as after a crash.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Pool:
    """So many threads that run what is submitted, in order."""

    def __init__(self, name: str, threads: int) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"gw-{name}-{number}", daemon=True).start()

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Runs `work` as soon as a thread is free; it must not raise."""
        self._work.put((work, arguments))

    def _run(self) -> None:
        while True:
            work, arguments = self._work.get()
            work(*arguments)
