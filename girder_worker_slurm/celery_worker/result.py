"""The Celery end of a detached task: its result, and the tasks linked to it.

What a caller expects still holds: ``get()`` returns or raises, links, chains and errbacks are sent,
``ignore_result`` is honoured. The ids of everything sent from here are fixed by the task's own id, so that
sending again after a crash sends the same tasks, which are taken only once.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_slurm.celery_worker.message import DecodedTask

_NAMESPACE = uuid.UUID("6f0c2a2e-6a2b-4d8e-9a53-0f5a4c1f7b11")


def linked_id(task_id: str, kind: str, index: int) -> str:
    """The id of a task that is sent when `task_id` ends; always the same one."""
    return str(uuid.uuid5(_NAMESPACE, f"{task_id}/{kind}/{index}"))


def send_success(app: Any, task: Any, task_id: str, decoded: DecodedTask, value: Any) -> None:
    """Sends links and chain, then the result, in the order of Celery's own worker."""
    context = decoded.context
    root = context.root_id or task_id
    with _Current(task, context):
        for index, signature in enumerate(context.callbacks or ()):
            _send(app, signature, value, linked_id(task_id, "link", index), task_id, root)
        chain = list(context.chain or ())
        if chain:
            following = chain.pop()
            _send(app, following, value, linked_id(task_id, "chain", 0), task_id, root, chain=chain)
        task.backend.mark_as_done(
            task_id, value, request=context, store_result=not _ignores_result(task, context)
        )


def send_failure(app: Any, task: Any, task_id: str, decoded: DecodedTask, error: Exception) -> None:
    """Sends errbacks and the failure."""
    context = decoded.context
    context.errbacks = [
        _with_id(app, signature, linked_id(task_id, "errback", index))
        for index, signature in enumerate(context.errbacks or ())
    ]
    ignore = _ignores_result(task, context) and not task.store_errors_even_if_ignored
    with _Current(task, context):
        task.backend.mark_as_failure(task_id, error, traceback=None, request=context, store_result=not ignore)


def _ignores_result(task: Any, context: Any) -> bool:
    """Whether the caller wants no result: as the message says, or else the task. Celery tells it from 5.7 on only."""
    # The class of the context has a False of its own, which nobody said.
    asked = vars(context).get("ignore_result")
    return bool(task.ignore_result if asked is None else asked)


def send_revoked(task: Any, task_id: str, decoded: DecodedTask, reason: str) -> None:
    """Lets a waiting caller know that the task was cancelled."""
    with _Current(task, decoded.context):
        task.backend.mark_as_revoked(task_id, reason, request=decoded.context, store_result=True)


def _with_id(app: Any, signature: Any, task_id: str) -> Any:
    from celery.canvas import maybe_signature  # noqa: PLC0415

    made = maybe_signature(signature, app=app).clone()
    made.options.setdefault("task_id", task_id)
    return made


def _send(app: Any, signature: Any, value: Any, task_id: str, parent: str, root: str, **options: Any) -> None:
    _with_id(app, signature, task_id).apply_async((value,), parent_id=parent, root_id=root, **options)


class _Current:
    """Makes a task the current one: Girder Worker creates the jobs of linked tasks from its request."""

    def __init__(self, task: Any, context: Any) -> None:
        self._task = task
        self._context = context

    def __enter__(self) -> None:
        from celery._state import _task_stack  # noqa: PLC0415

        _task_stack.push(self._task)
        self._task.request_stack.push(self._context)

    def __exit__(self, *_: object) -> None:
        from celery._state import _task_stack  # noqa: PLC0415

        self._task.request_stack.pop()
        _task_stack.pop()


class CeleryResults:
    """Sends results with the worker's own app; a broker that does not answer raises Unreachable."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def success(self, task: str, task_id: str, decoded: DecodedTask, value: Any) -> None:
        """See `ResultSender.success`."""
        self._send(lambda: send_success(self._app, self._app.tasks[task], task_id, decoded, value))

    def failure(self, task: str, task_id: str, decoded: DecodedTask, sentence: str) -> None:
        """See `ResultSender.failure`."""
        self._send(
            lambda: send_failure(self._app, self._app.tasks[task], task_id, decoded, RuntimeError(sentence))
        )

    def revoked(self, task: str, task_id: str, decoded: DecodedTask, sentence: str) -> None:
        """See `ResultSender.revoked`."""
        self._send(lambda: send_revoked(self._app.tasks[task], task_id, decoded, sentence))

    def _send(self, send: Callable[[], None]) -> None:
        from kombu.exceptions import OperationalError  # noqa: PLC0415

        try:
            send()
        except Exception as error:
            if not isinstance(error, (OperationalError, OSError)) and not self._is_of_backend(error):
                raise
            msg = f"The broker does not take the task's result: {error}"
            raise Unreachable(msg) from error

    def _is_of_backend(self, error: Exception) -> bool:
        """Whether the backend counts it as a lost connection. Redis' own are no OSError; KeyError, which kombu adds, is ours."""
        kinds = getattr(getattr(self._app, "backend", None), "connection_errors", ())
        return isinstance(error, tuple(kinds)) and not isinstance(error, LookupError)
