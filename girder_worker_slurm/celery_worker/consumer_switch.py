"""The valve between RabbitMQ and the intake."""

from __future__ import annotations

import threading
from typing import Any

_PAUSE_SECONDS = 5.0


class ConsumerSwitch:
    """Stops and restarts the taking of messages, across reconnects."""

    def __init__(self, queues: list[str]) -> None:
        self._queues = queues
        self._consumer: Any = None

    def attach(self, consumer: Any, *, is_paused: bool) -> None:
        """Uses this consumer from now on; a pause goes on. Called in the consumer's own thread."""
        self._consumer = consumer
        if is_paused:
            for name in self._queues:
                consumer.call_soon(consumer.cancel_task_queue, name)

    def pause(self) -> None:
        """Takes no more messages; returns when the consumer has stopped, or after some seconds."""
        consumer = self._consumer
        if consumer is None:
            return
        has_stopped = threading.Event()

        def stop() -> None:
            for name in self._queues:
                consumer.cancel_task_queue(name)
            has_stopped.set()

        consumer.call_soon(stop)
        # What is given back before that would be delivered again at once.
        has_stopped.wait(_PAUSE_SECONDS)

    def resume(self) -> None:
        """Takes messages again."""
        consumer = self._consumer
        if consumer is not None:
            for name in self._queues:
                consumer.call_soon(consumer.add_task_queue, name)
