"""A task message as it came from the broker, kept on disk and turned back into Python objects later."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.celery_worker.admitted_objects import STOCK_CLASSES
from girder_worker_slurm.celery_worker.object_decoder import decode_text, decode_value
from girder_worker_slurm.errors import MessageUndecodable
from girder_worker_slurm.job.state import GirderJob

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: Set by `girder-slurm requeue`: run the task although its Girder job has ended with ERROR.
REQUEUED_HEADER = "girder_slurm_requeued"
#: Of JSON, and of the JSON that Girder Worker makes with jsonpickle.
_CONTENT_TYPE = "application/json"


@dataclass(frozen=True)
class DecodedTask:
    """The Python objects of a message."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: callbacks, errbacks, chain, chord, as Celery embeds them.
    embed: Mapping[str, Any]
    #: What Celery's tasks see as ``self.request``.
    context: Any
    #: Girder's result hooks, as objects.
    hooks: tuple[Any, ...]


def store_message(message: Any, *, queue: str = "") -> dict[str, Any]:
    """A kombu message as JSON: everything that is needed to run it, or to send it again."""
    headers = dict(message.headers or {})
    body = message.body
    stored: dict[str, Any] = {
        "task_id": str(
            headers.get("id")
            or _version_one(message).get("id")
            or message.properties.get("correlation_id")
            or ""
        ),
        "task": str(headers.get("task") or _version_one(message).get("task") or ""),
        "queue": queue or str((message.delivery_info or {}).get("routing_key") or ""),
        "headers": headers,
        "properties": dict(message.properties or {}),
        "delivery_info": {
            key: value
            for key, value in (message.delivery_info or {}).items()
            if isinstance(value, (str, int, bool))
        },
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
    }
    raw = (
        body
        if isinstance(body, bytes)
        else bytes(body)
        if isinstance(body, memoryview)
        else str(body).encode()
    )
    try:
        stored["body"] = raw.decode("utf-8")
    except UnicodeDecodeError:
        stored["body_base64"] = base64.b64encode(raw).decode("ascii")
    # What AMQP tables may hold beyond JSON (dates, bytes) is kept as text: nothing of ours reads it.
    plain: dict[str, Any] = json.loads(json.dumps(stored, default=str))
    return plain


def body_bytes(stored: Mapping[str, Any]) -> bytes:
    """The body as it came."""
    if "body_base64" in stored:
        return base64.b64decode(stored["body_base64"])
    return str(stored["body"]).encode("utf-8")


def girder_job_of(stored: Mapping[str, Any], api_url: str = "") -> GirderJob | None:
    """Where the job of a message is reported to; None for a task without a Girder job.

    With `api_url`, at that address instead of the one in the message.
    """
    headers = stored["headers"]
    spec = headers.get("jobInfoSpec")
    if not isinstance(spec, dict) or not spec.get("url"):
        return None
    url = str(spec["url"])
    original = str(headers.get("girder_api_url") or headers.get("apiUrl") or "").rstrip("/")
    if api_url and original and url.startswith(original):
        url = api_url.rstrip("/") + url[len(original) :]
    sent = spec.get("headers")
    return GirderJob(url, str(sent.get("Girder-Token", "")) if isinstance(sent, dict) else "")


def decode(stored: Mapping[str, Any], admitted: Collection[str] = STOCK_CLASSES) -> DecodedTask:
    """The objects of a stored message; raises MessageUndecodable naming what is missing, or not admitted, here."""
    from celery.app.task import Context  # noqa: PLC0415 - the command line must not load Celery

    headers = dict(stored["headers"])
    try:
        args, kwargs, embed = _parts(_payload(stored, admitted))
        # Each by itself, as Girder Worker has made them.
        hooks = tuple(decode_value(hook, admitted) for hook in headers.get("girder_result_hooks") or ())
    except MessageUndecodable as error:
        msg = f"{error} `girder-slurm requeue {stored['task_id']}` runs it again."
        raise MessageUndecodable(msg) from error
    except Exception as error:
        # An admitted class of the site's own, or its module, may raise anything.
        msg = f"The task message cannot be decoded: {type(error).__name__}: {error}."
        raise MessageUndecodable(msg) from error
    properties = stored["properties"]
    context = Context(
        {
            **headers,
            **embed,
            "id": stored["task_id"],
            "args": args,
            "kwargs": kwargs,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "delivery_info": {"priority": None, "redelivered": None, **stored["delivery_info"]},
            "called_directly": False,
            "is_eager": False,
            "hostname": None,
        }
    )
    return DecodedTask(tuple(args), kwargs, embed, context, hooks)


def _payload(stored: Mapping[str, Any], admitted: Collection[str]) -> Any:
    if stored["content_type"] != _CONTENT_TYPE:
        msg = f"The task message is {stored['content_type']}; only {_CONTENT_TYPE} is read here."
        raise MessageUndecodable(msg)
    return decode_text(body_bytes(stored), admitted)


def _version_one(message: Any) -> Mapping[str, Any]:
    """The fields of a message of Celery's first protocol, which has them in the body."""
    if "task" in (message.headers or {}):
        return {}
    try:
        # As plain JSON: its names are wanted, and no object.
        payload = json.loads(bytes(message.body) if isinstance(message.body, memoryview) else message.body)
    except (ValueError, TypeError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def _parts(payload: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    if isinstance(payload, dict):
        embed = {key: payload.get(key) for key in ("callbacks", "errbacks", "chord", "chain")}
        return list(payload.get("args") or ()), dict(payload.get("kwargs") or {}), embed
    try:
        args, kwargs, embed = payload
        return list(args), dict(kwargs), dict(embed or {})
    except (TypeError, ValueError) as error:
        msg = "The task message has not the form of a Celery task."
        raise MessageUndecodable(msg) from error
