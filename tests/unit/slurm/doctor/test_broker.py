"""Who takes tasks from the queue, and what is said of a broker that does not answer."""

from __future__ import annotations

import pytest

from girder_worker_slurm.doctor.broker import check_broker, judge_queue
from girder_worker_slurm.doctor.broker_connection import QueueFacts, shown_address
from girder_worker_slurm.doctor.finding import Level
from tests.unit.slurm.doctor.here import levels, settings_with


@pytest.mark.parametrize(
    ("queue", "running", "expected"),
    [
        (None, 0, "warn"),
        (QueueFacts(3, 0), 0, "ok"),
        (QueueFacts(0, 1), 1, "ok"),
        (QueueFacts(0, 1), 0, "warn"),
        (QueueFacts(0, 2), 1, "warn"),
        (QueueFacts(9, 0), 1, "warn"),
    ],
)
def test_who_takes_from_a_queue_is_compared_with_who_should(queue, running, expected):
    assert levels(judge_queue("celery", queue, running)) == [expected]


def test_another_consumer_is_named_as_such():
    (finding,) = judge_queue("celery", QueueFacts(0, 1), 0)

    assert "1 more takes tasks" in finding.found
    assert "`worker`" in finding.remedy


def test_a_broker_that_is_not_there_fails_without_the_password(tmp_path):
    settings = settings_with(tmp_path, GIRDER_WORKER_BROKER="amqp://me:topsecret@127.0.0.1:1//")

    (finding,) = check_broker(settings, running_workers=0, timeout_seconds=1.0)

    assert finding.level is Level.FAIL
    assert "127.0.0.1:1" in finding.found
    assert "topsecret" not in str(finding)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:secret@10.0.0.5/", "10.0.0.5:5672"),
        ("amqp://me:secret@127.0.0.1:27130//", "127.0.0.1:27130"),
        ("amqp://me:secret@rabbit/girder", "rabbit:5672/girder"),
        ("amqps://me:secret@rabbit/", "rabbit:5671"),
    ],
)
def test_a_broker_is_shown_by_host_port_and_virtual_host(url, shown):
    assert shown_address(url) == shown
