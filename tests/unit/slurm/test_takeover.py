"""The stock tasks stay what they are; only what happens to their messages is ours."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.utils.imports import symbol_by_name

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm import SlurmPlugin, is_enabled
from girder_worker_slurm.celery_worker.intake import Intake
from girder_worker_slurm.celery_worker.takeover import STRATEGY, TAKEN_OVER, detached_strategy, take_over
from girder_worker_slurm.records.jobs_root import JobsRoot
from tests.unit.slurm.site import broker_message


@pytest.fixture
def app():
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


def test_every_name_that_a_server_sends_is_taken_over(app):
    assert set(take_over(app)) == set(TAKEN_OVER)
    assert {app.tasks[name].Strategy for name in TAKEN_OVER} == {STRATEGY}


def test_a_task_that_is_there_stays_and_only_changes_its_strategy(app):
    name = TAKEN_OVER[-1]

    @app.task(name=name, shared=False)
    def stock():
        return "stock"

    take_over(app)
    assert app.tasks[name].run() == "stock"
    assert app.tasks[name].Strategy == STRATEGY


def test_a_task_that_nobody_brings_cannot_be_called_by_mistake(app):
    take_over(app)
    with pytest.raises(NotImplementedError):
        app.tasks[TAKEN_OVER[-1]].run()


def test_the_strategy_is_found_by_its_name():
    assert symbol_by_name(STRATEGY) is detached_strategy


def test_the_strategy_hands_the_message_over_without_decoding_it():
    taken = []
    intake = SimpleNamespace(take=lambda message, ack, reject: taken.append((message, ack, reject)))
    consumer = SimpleNamespace(
        controller=SimpleNamespace(girder_slurm=SimpleNamespace(intake=intake)), connection_errors=(OSError,)
    )
    on_message = detached_strategy(None, None, consumer)
    answered = []
    message = broker_message(b"\xff not to be read")
    on_message(
        message,
        None,
        lambda _log, errors: answered.append(("ack", errors)),
        lambda _log, errors, requeue: answered.append(("reject", errors, requeue)),
        [],
    )
    ((seen, ack, reject),) = taken
    assert seen is message
    ack()
    reject()
    assert answered == [("ack", (OSError,)), ("reject", (OSError,), True)]


def test_a_message_that_was_really_sent_has_a_record_before_it_is_acknowledged(app, tmp_path):
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    supervisor = SimpleNamespace(accept=lambda _record: None, live_count=0)
    intake = Intake(root, supervisor, FakeClock(), max_accepted=9, pause=lambda: None, resume=lambda: None)
    seen = []
    app.send_task(TAKEN_OVER[0], kwargs={"image": "i:1"}, task_id="t1", queue="of-this-test")
    with app.connection_for_read() as connection, connection.SimpleQueue("of-this-test") as messages:
        message = messages.get(timeout=5)
        intake.take(message, lambda: (seen.append(root.has("t1")), message.ack()), message.requeue)
        intake.start()
        until = time.monotonic() + 10
        while not seen:
            assert time.monotonic() < until
            time.sleep(0.005)
        intake.stop()
    assert seen == [True]
    (record,) = root.own_records()
    assert record.message()["task"] == TAKEN_OVER[0]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"GIRDER_WORKER_SLURM_ENABLED": "1"}, True),
        ({"GIRDER_WORKER_SLURM_ENABLED": "no", "SIF_IMAGE_PATH": "/s"}, False),
        ({"SIF_IMAGE_PATH": "/s"}, True),
        ({"SIF_IMAGE_PATH": " "}, False),
        ({"GIRDER_WORKER_SLURM_SUBMIT_SCRIPT": "/s.sh"}, True),
    ],
)
def test_a_worker_serves_slurm_only_when_it_was_started_for_it(environment, wanted):
    assert is_enabled(environment) is wanted


def test_elsewhere_the_plugin_brings_no_module(monkeypatch):
    for name in ("GIRDER_WORKER_SLURM_ENABLED", "SIF_IMAGE_PATH", "GIRDER_WORKER_SLURM_SUBMIT_SCRIPT"):
        monkeypatch.delenv(name, raising=False)
    assert SlurmPlugin(object()).task_imports() == []
    monkeypatch.setenv("GIRDER_WORKER_SLURM_ENABLED", "1")
    assert SlurmPlugin(object(), "more", x=1).task_imports() == [
        "girder_worker_slurm.celery_worker.bootsteps"
    ]
