"""What a caller of a detached task gets, and that sending it again sends the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery, signature
from celery.app.task import Context

from girder_worker_slurm.celery_worker.message import DecodedTask
from girder_worker_slurm.celery_worker.result import CeleryResults, linked_id, send_failure, send_success
from girder_worker_slurm.errors import Unreachable


@pytest.fixture
def app():
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_always_eager=False, result_serializer="json")

    @app.task(name="the.task", shared=False)
    def task():
        raise NotImplementedError

    @app.task(name="linked", shared=False)
    def linked(value):
        return value

    yield app
    app.close()


class Sent:
    """The tasks that were sent, by a signal of Celery."""

    def __init__(self, app):
        from celery.signals import before_task_publish

        self.tasks = []
        self._signal = before_task_publish
        self._app = app
        before_task_publish.connect(self._keep, weak=False)

    def _keep(self, sender=None, headers=None, body=None, **_):
        self.tasks.append((sender, headers["id"], headers["parent_id"], headers["root_id"], tuple(body[0])))

    def stop(self):
        self._signal.disconnect(self._keep)


@pytest.fixture
def sent(app):
    sent = Sent(app)
    yield sent
    sent.stop()


def decoded(**context):
    values = {"id": "t1", "args": (), "kwargs": {}, "delivery_info": {}, "called_directly": False, **context}
    return DecodedTask((), {}, {}, Context(values), ())


def link(name="linked"):
    return dict(signature(name))


def test_a_caller_gets_the_value(app):
    send_success(app, app.tasks["the.task"], "t0", decoded(), ["file"])
    result = app.AsyncResult("t0")
    assert (result.status, result.result) == ("SUCCESS", ["file"])


def test_a_caller_gets_the_sentence_of_a_failure(app):
    CeleryResults(app).failure("the.task", "t2", decoded(), "No such region.")
    result = app.AsyncResult("t2")
    assert result.status == "FAILURE"
    assert str(result.result) == "No such region."


def test_a_caller_learns_of_a_cancel(app):
    CeleryResults(app).revoked("the.task", "t3", decoded(), "Cancelled.")
    assert app.AsyncResult("t3").status == "REVOKED"


def test_a_caller_that_wants_no_result_gets_none(app):
    send_success(app, app.tasks["the.task"], "t4", decoded(ignore_result=True), ["file"])
    assert app.AsyncResult("t4").status == "PENDING"


@pytest.mark.parametrize(
    ("said", "status"),
    [({}, "PENDING"), ({"ignore_result": None}, "PENDING"), ({"ignore_result": False}, "SUCCESS")],
)
def test_a_task_without_results_has_one_where_the_caller_asks_for_it(app, said, status):
    app.tasks["the.task"].ignore_result = True
    send_success(app, app.tasks["the.task"], f"t5-{said}", decoded(**said), "file")
    assert app.AsyncResult(f"t5-{said}").status == status


def test_linked_tasks_are_sent_with_the_value_and_the_same_ids_each_time(app, sent):
    for _ in range(2):
        context = decoded(callbacks=[link(), link()], root_id="r1")
        send_success(app, app.tasks["the.task"], "t1", context, 7)
    first, second = sent.tasks[:2], sent.tasks[2:]
    assert first == second
    assert [task[1] for task in first] == [linked_id("t1", "link", 0), linked_id("t1", "link", 1)]
    assert {(task[0], task[2], task[3], task[4]) for task in first} == {("linked", "t1", "r1", (7,))}


def test_the_next_task_of_a_chain_is_sent_with_the_rest(app, sent):
    for _ in range(2):
        send_success(app, app.tasks["the.task"], "t1", decoded(chain=[link(), link()]), 7)
    assert [task[1] for task in sent.tasks] == [linked_id("t1", "chain", 0)] * 2


def test_errbacks_are_sent_with_the_same_ids_each_time(app, sent):
    for _ in range(2):
        send_failure(app, app.tasks["the.task"], "t1", decoded(errbacks=[link()]), RuntimeError("no"))
    assert [task[1] for task in sent.tasks] == [linked_id("t1", "errback", 0)] * 2


def test_the_ids_of_linked_tasks_are_all_different():
    ids = {
        linked_id(task, kind, index) for task in ("a", "b") for kind in ("link", "chain") for index in (0, 1)
    }
    assert len(ids) == 8


def test_a_broker_that_does_not_take_a_result_is_asked_again_later(app):
    class Broken:
        tasks = app.tasks

    class Backend:
        def mark_as_done(self, *_args, **_kwargs):
            raise ConnectionResetError

    task = app.tasks["the.task"]
    task.backend = Backend()
    with pytest.raises(Unreachable):
        CeleryResults(Broken()).success("the.task", "t1", decoded(), None)


class Gone(Exception):
    """Redis has a ConnectionError of its own, which is no OSError."""


def test_a_result_backend_that_is_away_is_waited_for():
    """After eight tries in a minute the job was closed, and its caller, or the next task of its chain, waited for ever."""

    class Tasks:
        def __getitem__(self, name):
            raise errors.pop()

    app = SimpleNamespace(tasks=Tasks(), backend=SimpleNamespace(connection_errors=(Gone, KeyError)))
    errors = [Gone("Error 111 connecting to redis")]
    with pytest.raises(Unreachable):
        CeleryResults(app).success("x", "t1", None, [])
    errors = [KeyError("a mistake of ours")]
    with pytest.raises(KeyError):
        CeleryResults(app).success("x", "t1", None, [])
