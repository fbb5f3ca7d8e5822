"""The stock tasks that this worker takes over, by name.

The stock task objects stay registered; only their strategy (what Celery does with a message on arrival) becomes
ours. Names that other public workers use are registered where no installed package brings them.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Module that brings the task, and the task's name, which a server sends.
RUN_CLI = "slicer_cli_web.girder_worker_plugin.direct_docker_run.run"
DOCKER_RUN = "girder_worker.docker.tasks.docker_run"
INGEST = "slicer_cli_web.image_job.ingest_from_docker"
TAKEN_OVER = (
    RUN_CLI,
    DOCKER_RUN,
    INGEST,
    # What the public Slurm branches of Girder 3 and Girder 5 send.
    "slicer_cli_web_singularity.girder_worker_plugin.direct_singularity_run.run",
    "slicer_cli_web.singularity.slicer_cli_web_singularity.girder_worker_plugin.direct_singularity_run.run",
    "girder_worker_singularity.tasks.singularity_run",
)

STRATEGY = "girder_worker_slurm.celery_worker.takeover:detached_strategy"


def take_over(app: Any) -> list[str]:
    """Makes this worker detach the tasks of `TAKEN_OVER`; returns their names."""
    for name in TAKEN_OVER:
        _import(name.rpartition(".")[0])
        task = app.tasks.get(name)
        if task is None:
            task = app.register_task(_placeholder(name)())
        task.Strategy = STRATEGY
    return list(TAKEN_OVER)


def detached_strategy(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., None]:
    """What Celery calls for each message of a task that was taken over."""
    del task, app
    intake = consumer.controller.girder_slurm.intake

    def on_message(message: Any, _body: Any, ack: Any, reject: Any, _callbacks: Any, **__: Any) -> None:
        from celery.utils.log import get_logger  # noqa: PLC0415

        log, errors = get_logger(__name__), consumer.connection_errors
        # Both promises run in the event loop, whichever thread fulfils them.
        intake.take(message, lambda: ack(log, errors), lambda: reject(log, errors, True))

    return on_message


def replace_is_revoked() -> None:
    """Replaces Girder Worker's question to all workers whether a task was revoked by a look into this process.

    The stock function broadcasts and waits; a threads pool whose tasks end together then waits for ever, because
    the answer needs the connections that the questions hold.
    """
    import girder_worker.app  # noqa: PLC0415
    import girder_worker.task  # noqa: PLC0415
    import girder_worker.utils  # noqa: PLC0415
    from celery.worker.state import revoked  # noqa: PLC0415

    stock = girder_worker.utils.is_revoked
    main_process = os.getpid()

    def is_revoked(task: Any) -> bool:
        if task.request.is_eager:
            return False
        # A pool's child process has no list of its own.
        return task.request.id in revoked if os.getpid() == main_process else bool(stock(task))

    for module in (girder_worker.utils, girder_worker.app, girder_worker.task):
        module.is_revoked = is_revoked


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError:
        # Not installed: its tasks are taken all the same, and explained on their Girder job.
        return


def _placeholder(name: str) -> type:
    from girder_worker.task import Task  # noqa: PLC0415

    def run(self: Any, *_args: Any, **_kwargs: Any) -> None:
        msg = f"{self.name} runs only through this worker's own strategy."
        raise NotImplementedError(msg)

    return type("DetachedTask", (Task,), {"name": name, "run": run})
