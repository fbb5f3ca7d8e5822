"""`unhandled` and `requeue`, with kombu's broker in memory."""

from __future__ import annotations

import pytest
from kombu import Connection, Exchange, Producer, Queue

from girder_worker_slurm.celery_worker.message import REQUEUED_HEADER, body_bytes, store_message
from girder_worker_slurm.cli.kept_messages import kept_messages, send_again
from girder_worker_slurm.doctor.broker_connection import BrokerUnreachable

BROKER = "memory://requeue"


@pytest.fixture
def queue():
    with Connection(BROKER) as connection, connection.channel() as channel:
        queue = Queue("jobs-queue", Exchange("jobs-queue"), "jobs-queue", channel=channel)
        queue.declare()
        queue.purge()
        yield queue
        queue.purge()


def waiting(queue) -> int:
    return queue.queue_declare(passive=True).message_count


@pytest.fixture
def kept(jobs, queue):
    """Messages that went through the broker and were put aside, by task id."""
    jobs.environment["GIRDER_WORKER_BROKER"] = BROKER

    def keep(task_id: str, body: object = ((1, 2), {"a": "ü"}, {}), **publish) -> None:
        headers = {"id": task_id, "task": "unknown.task", "secret": "s" * 20}
        Producer(queue.channel).publish(
            body,
            routing_key="jobs-queue",
            headers=headers,
            correlation_id=task_id,
            reply_to="answers",
            **publish,
        )
        message = queue.get()
        jobs.root.keep_unhandled(
            store_message(message, queue="jobs-queue"), f"The task unknown.task is not installed ({task_id})."
        )
        message.ack()

    return keep


def test_unhandled_messages_are_listed_with_their_reason_and_without_their_content(jobs, kept):
    kept("task-1")

    text, (found,) = jobs.run("unhandled").stdout, jobs.json("unhandled")

    assert "task-1" in text
    assert "is not installed (task-1)" in text
    assert (found["id"], found["task"], found["queue"]) == ("task-1", "unknown.task", "jobs-queue")
    assert "s" * 20 not in text + str(found)


def test_nothing_kept_is_an_answer(jobs):
    assert jobs.run("unhandled").stdout == "No messages are kept.\n"
    assert jobs.run("requeue", "--all").exit_code == 0


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_message_goes_back_as_it_came(jobs, kept, queue, compression):
    kept("task-1", compression=compression)
    before = jobs.root.unhandled / "task-1"
    stored = kept_messages(jobs.root)[0].content()

    result = jobs.run("requeue", "task-1")

    assert result.exit_code == 0, result.output
    message = queue.get()
    again = store_message(message, queue="jobs-queue")
    assert message.payload == [[1, 2], {"a": "ü"}, {}]
    assert body_bytes(again) == body_bytes(stored)
    assert again["headers"].pop(REQUEUED_HEADER) is True
    for name in ("headers", "content_type", "content_encoding", "task_id", "task"):
        assert again[name] == stored[name]
    for name in ("correlation_id", "reply_to"):
        assert again["properties"][name] == stored["properties"][name]
    assert not before.exists()
    assert jobs.json("unhandled") == []


def test_a_body_that_is_no_text_goes_back_byte_by_byte(jobs, kept, queue):
    kept(
        "task-1", b"\x80\x02]q\x00.", content_type="application/x-python-serialize", content_encoding="binary"
    )

    assert jobs.run("requeue", "task-1").exit_code == 0

    message = queue.get()
    assert message.body == b"\x80\x02]q\x00."
    assert message.content_type == "application/x-python-serialize"


def test_all_and_several_are_sent(jobs, kept, queue):
    for number in range(4):
        kept(f"task-{number}")

    assert jobs.run("requeue", "task-1", "task-3").exit_code == 0
    assert waiting(queue) == 2
    assert [sent["id"] for sent in jobs.json("requeue", "--all")] == ["task-0", "task-2"]
    assert waiting(queue) == 4


def test_the_record_of_a_job_that_ended_undecoded_makes_way(jobs, kept, queue):
    kept("task-1")
    jobs.ended("task-1", outcome="error")

    assert jobs.run("requeue", "task-1").exit_code == 0
    assert not jobs.root.has("task-1")


def test_a_job_under_way_is_not_sent_twice(jobs, kept, queue):
    kept("task-1")
    jobs.job("task-1", girder_id="66a1")

    result = jobs.run("requeue", "task-1")

    assert result.exit_code == 1
    assert "under way" in result.stderr
    assert waiting(queue) == 0
    assert (jobs.root.unhandled / "task-1").exists()


def test_when_the_broker_fails_nothing_is_lost(jobs, kept):
    kept("task-1")
    jobs.ended("task-1", outcome="error")

    class Failing:
        def queue(self, _name):
            return object()

        def publish(self, *_):
            raise BrokerUnreachable("gone")

    with pytest.raises(BrokerUnreachable):
        send_again(jobs.root, kept_messages(jobs.root)[0], Failing(), queue="")
    assert (jobs.root.unhandled / "task-1" / "message.json").exists()
    assert (jobs.root.ended / "task-1").exists()


def test_a_missing_queue_keeps_the_message_and_the_others_go(jobs, kept, queue):
    kept("task-1")
    kept("task-2")
    message = jobs.root.unhandled / "task-1" / "message.json"
    message.write_text(message.read_text().replace('"jobs-queue"', '"no-such-queue"'))

    result = jobs.run("requeue", "--all")

    assert result.exit_code == 1
    assert "no queue no-such-queue" in result.stderr
    assert waiting(queue) == 1
    assert [found["id"] for found in jobs.json("unhandled")] == ["task-1"]


def test_neither_ids_nor_all_is_a_usage_error(jobs):
    assert jobs.run("requeue").exit_code == 2
    assert jobs.run("requeue", "--all", "task-1").exit_code == 2


def test_an_id_that_fits_none_or_several_is_refused(jobs, kept):
    kept("task-1")
    kept("task-2")

    assert jobs.run("requeue", "other").exit_code == 1
    assert jobs.run("requeue", "task-").exit_code == 2
