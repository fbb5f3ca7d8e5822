"""One piece of work for all threads of this process that want its result."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from girder_worker_singularity.errors import ContainerError, ConversionStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

logger = logging.getLogger(__name__)

_FOLLOWER_POLL_SECONDS = 0.2

Result = TypeVar("Result")


class _Flight(Generic[Result]):
    """One piece of work in progress, and those who wait for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.listeners: list[Callable[[str], None]] = []
        self.result: Result | None = None
        self.error: BaseException | None = None

    def tell(self, line: str) -> None:
        for listener in list(self.listeners):
            try:
                listener(line)
            except Exception:
                logger.exception("A listener to a conversion failed and hears no more of it")
                self.listeners.remove(listener)


class Flights(Generic[Result]):
    """The work in progress by key: the first who asks does it, whoever asks meanwhile waits for the same result."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[Result]] = {}
        self._lock = threading.Lock()

    def join(
        self,
        key: Hashable,
        work: Callable[[Callable[[str], None]], Result],
        *,
        what: str,
        on_progress: Callable[[str], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Result | None:
        """The result of `work`, done here or by another thread; None if the other one was told to stop.

        `work` is given a function that tells all who wait how far it is. Raises what it raises, and ConversionStopped
        soon after `should_stop` turned true while another thread was waited for.
        """
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
            if on_progress is not None:
                flight.listeners.append(on_progress)
        if leads:
            return self._lead(flight, key, work)
        while not flight.done.wait(_FOLLOWER_POLL_SECONDS):
            if should_stop is not None and should_stop():
                raise ConversionStopped(f"Waiting for the SIF of {what} was stopped.")
        if isinstance(flight.error, ContainerError) and not isinstance(flight.error, ConversionStopped):
            raise flight.error
        return flight.result

    def _lead(
        self, flight: _Flight[Result], key: Hashable, work: Callable[[Callable[[str], None]], Result]
    ) -> Result:
        try:
            flight.result = work(flight.tell)
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()
        return flight.result
