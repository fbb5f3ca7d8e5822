"""A message keeps everything on its way through the disk, and says what is missing when it cannot be understood."""

from __future__ import annotations

import base64
import datetime as dt
import json

import jsonpickle
import pytest
from girder_worker.docker.transforms import VolumePath

from girder_worker_slurm.celery_worker.message import body_bytes, decode, store_message
from girder_worker_slurm.errors import MessageUndecodable
from tests.unit.slurm.site import broker_message, message_of

HEADERS = {"id": "t1", "task": "a.task", "lang": "py", "root_id": "r", "retries": 0}
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def test_a_message_of_the_second_protocol_survives_the_disk():
    message = broker_message(
        [[1, "ä"], {"x": None}, EMBED],
        headers=HEADERS,
        properties={"reply_to": "q", "correlation_id": "t1", "priority": 3},
    )
    stored = json.loads(json.dumps(store_message(message)))
    assert (stored["task_id"], stored["task"], stored["queue"]) == ("t1", "a.task", "celery")
    assert body_bytes(stored) == message.body
    decoded = decode(stored)
    assert (decoded.args, decoded.kwargs) == ((1, "ä"), {"x": None})
    assert (decoded.context.id, decoded.context.reply_to, decoded.context.correlation_id) == ("t1", "q", "t1")
    assert decoded.context.root_id == "r"


def test_a_message_of_the_first_protocol_has_its_names_in_the_body():
    body = {"id": "t1", "task": "a.task", "args": [1], "kwargs": {"x": 2}, "callbacks": ["link"]}
    stored = store_message(broker_message(body))
    assert (stored["task_id"], stored["task"]) == ("t1", "a.task")
    decoded = decode(stored)
    assert (decoded.args, decoded.kwargs, decoded.embed["callbacks"]) == ((1,), {"x": 2}, ["link"])


@pytest.mark.parametrize("form", [bytes, memoryview])
def test_a_body_that_is_no_text_survives_the_disk(form):
    body = b"\x80\x02}q\x00.\xff"
    message = broker_message(body, headers=HEADERS, content_type="application/x-python-serialize")
    message.body = form(body)
    stored = json.loads(json.dumps(store_message(message)))
    assert base64.b64decode(stored["body_base64"]) == body
    assert body_bytes(stored) == body


def test_what_headers_hold_beyond_json_becomes_text():
    headers = {**HEADERS, "when": dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc), "raw": b"x"}
    stored = store_message(broker_message([[], {}, {}], headers=headers))
    assert stored["headers"]["when"].startswith("2026-01-02")
    json.dumps(stored)


def test_a_message_without_any_id_has_none():
    assert store_message(broker_message(b"nonsense"))["task_id"] == ""


def test_the_id_may_come_from_the_correlation():
    stored = store_message(
        broker_message([[], {}, {}], headers={"task": "x"}, properties={"correlation_id": "c"})
    )
    assert stored["task_id"] == "c"


def stored_message(content, **fields):
    return {**message_of("t1"), "body": json.dumps(content), **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {"body": "{"},
        {"body": "[1, 2]"},
        {"body": "7"},
        {"body": "[7, {}, {}]"},
        {"content_type": "application/x-python-serialize"},
        {"content_type": "application/unknown"},
    ],
)
def test_a_body_that_cannot_be_read_says_so(fields):
    with pytest.raises(MessageUndecodable):
        decode(stored_message([[], {}, {}], **fields))


def test_pickle_is_never_read_even_if_it_comes():
    body = b"cos\nsystem\n(S'touch /tmp/owned'\ntR."
    stored = {**message_of("t1"), "body_base64": base64.b64encode(body).decode()}
    stored.update(content_type="application/x-python-serialize", content_encoding="binary")
    with pytest.raises(MessageUndecodable):
        decode(stored)


@pytest.mark.parametrize("place", ["args", "kwargs", "deep"])
def test_a_class_that_is_not_installed_is_named_with_its_package(place):
    missing = {"py/object": "histomicstk_extras.transforms.Slide", "x": 1}
    body = {
        "args": [[missing], {}, {}],
        "kwargs": [[], {"x": missing}, {}],
        "deep": [[[{"x": [missing]}]], {}, {}],
    }[place]
    with pytest.raises(
        MessageUndecodable, match=r"histomicstk_extras.*install `histomicstk-extras`.*requeue t1"
    ):
        decode(stored_message(body))


def test_result_hooks_become_objects():
    hook = json.loads(jsonpickle.encode(VolumePath("out.csv")))
    stored = message_of("t1", hooks=[hook])
    (restored,) = decode(stored).hooks
    assert isinstance(restored, VolumePath)
    assert restored.filename == "out.csv"


def test_a_hook_whose_class_is_missing_is_named():
    stored = message_of("t1", hooks=[{"py/object": "no_such_package.Hook"}])
    with pytest.raises(MessageUndecodable, match="no-such-package"):
        decode(stored)


def test_a_message_can_be_decoded_again_and_again():
    stored = message_of("t1", hooks=[json.loads(jsonpickle.encode(VolumePath("a")))], x=1)
    first, second = decode(stored), decode(stored)
    assert first.kwargs == second.kwargs
    assert isinstance(second.hooks[0], VolumePath)
