"""The worker's parts as Celery bootsteps.

Importing this module registers them; they act only in a worker that consumes a queue other than Girder's own
``local``.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery import bootsteps
from celery.signals import after_setup_logger, after_setup_task_logger
from girder_worker.app import app

from girder_worker_slurm.celery_worker.log_lines import show_lines_as_they_are
from girder_worker_slurm.celery_worker.takeover import replace_is_revoked, take_over

logger = logging.getLogger(__name__)


class SlurmWorkerStep(bootsteps.StartStopStep):  # type: ignore[misc] # celery has no types
    """Owns the supervisor for as long as the worker lives, across reconnects of its consumer."""

    requires = ("celery.worker.components:Pool",)
    name = "girder-slurm"

    def include_if(self, parent: Any) -> bool:
        """Only where other queues than ``local`` are consumed."""
        return set(parent.app.amqp.queues.consume_from) != {"local"}

    def create(self, parent: Any) -> Any:
        """Builds everything and refuses to start where it cannot work."""
        from girder_worker_slurm.assembly import assemble  # noqa: PLC0415
        from girder_worker_slurm.errors import SlurmWorkerError  # noqa: PLC0415

        replace_is_revoked()
        names = take_over(parent.app)
        try:
            parent.girder_slurm = assemble(parent.app, os.environ)
        except SlurmWorkerError as error:
            print(f"girder-worker-slurm cannot start: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
            raise SystemExit(78) from error
        logger.info("Taken over: %s", ", ".join(names))
        return parent.girder_slurm

    def start(self, parent: Any) -> None:
        """Takes up all unfinished jobs."""
        parent.girder_slurm.start()

    def stop(self, parent: Any) -> None:
        """Stops at once; every job goes on in Slurm and is taken up at the next start."""
        parent.girder_slurm.stop()

    terminate = stop


class SlurmConsumerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Connects each new consumer: what Celery would discard is kept, and a pause outlives a reconnect."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    name = "girder-slurm"

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        worker = getattr(parent.controller, "girder_slurm", None)
        if worker is None:
            return
        unhandled = worker.unhandled
        parent.on_unknown_task = lambda _body, message, _error: unhandled.unknown_task(message)
        parent.on_unknown_message = lambda _body, message: unhandled.broken_message(
            message, "not a task message"
        )
        parent.on_invalid_task = lambda _body, message, error: unhandled.broken_message(message, error)
        parent.on_decode_error = unhandled.broken_message
        make_handler = parent.create_task_handler
        parent.create_task_handler = lambda *args, **kwargs: unhandled.guarded(make_handler(*args, **kwargs))

    def include_if(self, parent: Any) -> bool:
        """Only beside the supervisor."""
        return hasattr(parent.controller, "girder_slurm")

    def start(self, parent: Any) -> None:
        """Tells the worker which consumer is the present one."""
        parent.controller.girder_slurm.attach(parent)


if "GIRDER_WORKER_SLURM_ENABLED" in os.environ:
    # Only in a worker of ours: what is printed is printed, not logged as a warning; and the lines that Girder Worker
    # prints itself come once.
    app.conf.worker_redirect_stdouts = False
    logging.getLogger("girder_worker").propagate = False
    after_setup_logger.connect(show_lines_as_they_are)
    after_setup_task_logger.connect(show_lines_as_they_are)
app.steps["worker"].add(SlurmWorkerStep)
app.steps["consumer"].add(SlurmConsumerStep)
