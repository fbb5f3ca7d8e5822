"""A jobs root belongs to one broker and its queues; its workers know of each other by their leases."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.errors import OwnershipLost, RecordDamaged, StartRefused
from girder_worker_slurm.records.jobs_root import JobsRoot, broker_identity
from girder_worker_slurm.records.record import Record
from tests.unit.slurm.site import message_of

BROKER = "amqp://user:geheim@broker:5672//"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def root(tmp_path):
    return made(tmp_path, "w1")


def made(tmp_path, worker_id):
    root = JobsRoot(tmp_path / "jobs", worker_id)
    root.prepare()
    return root


def roots(tmp_path):
    return [made(tmp_path, name) for name in ("w1", "w2")]


def add(root, task_id="t1"):
    return Record.create(root.records, {"task_id": task_id, "task": "x"}, worker_id=root.worker_id, at=0.0)


def test_the_directories_are_private(root):
    root.prepare()
    assert root.path.stat().st_mode & 0o077 == 0
    assert {path.name for path in root.path.iterdir()} >= {
        "record",
        "ended",
        "run",
        "spool",
        "workers",
        "unhandled",
    }


def test_a_root_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match=r"\[jobs\]"):
        JobsRoot(tmp_path / "file" / "jobs", "w1").prepare()


def test_the_id_of_a_root_stays(root):
    assert root.identify(BROKER, ["celery"]) == root.identify(BROKER, ["celery"])


@pytest.mark.parametrize(
    "broker", ["amqp://other:wrong@broker/", "amqp://broker:5672//", "amqp://user:new@broker//"]
)
def test_user_and_password_do_not_make_another_broker(root, broker):
    first = root.identify(BROKER, ["celery"])
    if broker_identity(broker) == broker_identity(BROKER):
        assert root.identify(broker, ["celery"]) == first
    else:
        with pytest.raises(StartRefused):
            root.identify(broker, ["celery"])


@pytest.mark.parametrize("over_tls", ["amqps://me@broker//", "amqps://me@broker:5671//"])
def test_a_broker_is_the_same_after_tls_has_been_turned_on(root, over_tls):
    assert root.identify("amqp://me@broker//", ["celery"]) == root.identify(over_tls, ["celery"])


def test_a_root_of_a_broker_with_tls_stays_its_own_after_an_update(root):
    """Older versions noted the port of TLS."""
    stored = {"version": 1, "id": "abcdef", "broker": "broker:5671//", "queues": ["celery"]}
    (root.path / "root.json").write_text(json.dumps(stored))
    assert root.identify("amqps://me@broker:5671//", ["celery"]) == "abcdef"
    with pytest.raises(StartRefused):
        root.identify("amqps://me@broker:5673//", ["celery"])


@pytest.mark.parametrize(
    ("broker", "queues"),
    [("amqp://elsewhere//", ["celery"]), ("amqp://broker/other", ["celery"]), (BROKER, ["celery", "gpu"])],
)
def test_a_root_of_another_broker_or_other_queues_is_refused(root, broker, queues):
    root.identify(BROKER, ["celery"])
    with pytest.raises(StartRefused, match="belongs to broker") as caught:
        root.identify(broker, queues)
    assert "geheim" not in str(caught.value)


def test_the_order_of_queues_does_not_matter(root):
    assert root.identify(BROKER, ["a", "b"]) == root.identify(BROKER, ["b", "a"])


def test_the_password_is_not_on_the_disk(root):
    root.identify(BROKER, ["celery"])
    assert "geheim" not in (root.path / "root.json").read_text()


def test_workers_have_prefixes_of_their_own(tmp_path):
    prefixes = {made(tmp_path, f"w{number}").token_prefix("abc") for number in range(20)}
    assert len(prefixes) == 20
    assert all(prefix.startswith("gw-abc") for prefix in prefixes)


def test_a_second_worker_of_the_same_name_is_refused_while_the_first_lives(root, tmp_path, clock):
    lease = root.lease(clock)
    second = made(tmp_path, "w1")
    with pytest.raises(StartRefused, match="already serves"):
        second.lease(clock)
    lease.release()
    second.lease(clock).release()


def test_a_worker_that_crashed_with_its_host_or_container_starts_again(root, tmp_path, clock, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr("girder_worker_singularity.holder._boot_id", lambda: "the boot before")
        root.lease(clock)
    made(tmp_path, "w1").lease(clock).release()
    assert 60 <= sum(clock.slept) <= 61


def test_workers_of_other_names_live_beside_each_other(root, tmp_path, clock):
    root.lease(clock)
    made(tmp_path, "w2").lease(clock)


def test_each_worker_sees_its_own_records(root, tmp_path):
    add(root, "t1")
    other = made(tmp_path, "w2")
    add(other, "t2")
    assert [record.task_id for record in root.own_records()] == ["t1"]
    assert [record.task_id for record in other.own_records()] == ["t2"]


@pytest.mark.fault("two workers on one queue", phases=("running",))
def test_a_worker_that_looks_at_anothers_record_does_not_cut_off_what_is_being_written(tmp_path):
    """Taking over, and starting, loaded the records of all workers to be repaired: a half-written line was cut off."""
    mine, others = roots(tmp_path)
    record = Record.create(others.records, message_of("t1"), worker_id="w2", at=0.0)
    state = record.path / "state.jsonl"
    whole = state.read_bytes()
    state.write_bytes(whole + b'{"event": "subm')
    assert list(mine.own_records()) == []
    assert state.read_bytes() == whole + b'{"event": "subm'


@pytest.mark.fault("job directory damaged", phases=("directory written",))
def test_a_damaged_record_does_not_hide_the_others(root):
    add(root, "bad")
    add(root, "good")
    (root.records / "bad" / "state.jsonl").write_bytes(b"\0\n{}\n")
    (root.records / ".new-left-by-a-crash").mkdir()
    assert [record.task_id for record in root.own_records()] == ["good"]


def orphans(root, clock, *, looks):
    found = []
    for _ in range(looks):
        found += root.orphaned_records(clock)
        clock.advance(5.0)
    return [record.task_id for record in found]


def test_the_jobs_of_a_worker_that_stands_still_are_taken_over_once(root, tmp_path, clock):
    root.lease(clock)
    add(root, "t1")
    other = made(tmp_path, "w2")
    add(other, "t2")
    assert orphans(other, clock, looks=10) == []
    assert orphans(other, clock, looks=10) == ["t1"]
    assert orphans(other, clock, looks=10) == []
    assert {record.task_id for record in other.own_records()} == {"t1", "t2"}


def test_the_jobs_of_a_worker_that_lives_are_left_alone(root, tmp_path, clock):
    lease = root.lease(clock)
    add(root, "t1")
    other = made(tmp_path, "w2")
    for _ in range(40):
        assert list(other.orphaned_records(clock)) == []
        lease.refresh()
        clock.advance(5.0)


def test_an_observer_that_was_stopped_itself_does_not_take_over(root, tmp_path, clock):
    lease = root.lease(clock)
    add(root, "t1")
    other = made(tmp_path, "w2")
    assert list(other.orphaned_records(clock)) == []
    clock.advance(10_000.0)
    assert list(other.orphaned_records(clock)) == []
    lease.refresh()


def test_of_two_workers_that_see_an_orphan_one_takes_it(root, tmp_path, clock):
    root.lease(clock)
    add(root, "t1")
    second, third = made(tmp_path, "w2"), made(tmp_path, "w3")
    taken = []
    for _ in range(20):
        taken += [
            record.worker_id for record in (*second.orphaned_records(clock), *third.orphaned_records(clock))
        ]
        clock.advance(5.0)
    assert len(taken) == 1


@pytest.mark.fault("second worker takes over", phases=("outputs uploading",))
def test_a_record_is_read_after_it_was_taken_over(tmp_path, monkeypatch):
    """What its last owner wrote between the reading and the take-over was not known, and done a second time."""
    mine, _ = roots(tmp_path)
    Record.create(mine.records, message_of("t1"), worker_id="w1", at=0.0)
    frozen = Record.load(mine.records / "t1", worker_id="w1")
    take_over = Record.take_over

    def at_the_last_moment(record, mark=None):
        frozen.append("uploaded", key="0:out.csv")
        return take_over(record, mark)

    monkeypatch.setattr(Record, "take_over", at_the_last_moment)
    (taken,) = mine.own_records()
    assert taken.state.uploaded == {"0:out.csv"}
    with pytest.raises(OwnershipLost):
        frozen.append("uploaded", key="0:other.csv")


def test_a_record_whose_owner_a_power_cut_took_is_somebodys_in_the_end(tmp_path):
    """Without an owner file it was nobody's, and no worker looked at it again."""
    mine, _ = roots(tmp_path)
    record = Record.create(mine.records, message_of("t1"), worker_id="w1", at=0.0)
    (record.path / "owner.1").unlink()
    clock = FakeClock()
    taken = []
    for _ in range(30):
        taken += mine.orphaned_records(clock)
        clock.advance(5.0)
    assert [record.task_id for record in taken] == ["t1"]


def test_a_record_that_cannot_be_read_for_a_moment_is_carried_by_who_took_it_over(
    root, tmp_path, clock, monkeypatch
):
    """It was this worker's from then on, but nobody looked at it until the next start."""
    root.lease(clock)
    add(root, "t1")
    other = made(tmp_path, "w2")
    load, failing = Record.load, [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "I/O error")]

    def stumbling(path, **how):
        if failing:
            raise RecordDamaged("cannot be read") from failing.pop()
        return load(path, **how)

    monkeypatch.setattr(Record, "load", stumbling)
    assert orphans(other, clock, looks=20) == ["t1"]
    assert not failing


def test_a_live_job_whose_record_cannot_be_read_for_a_moment_is_not_missed(root, monkeypatch):
    """Its Slurm job belonged to nobody then, and was cancelled."""
    add(root, "t1")
    with monkeypatch.context() as full:
        full.setattr(
            Path,
            "open",
            lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")),
        )
        with pytest.raises(OSError, match="Too many open files"):
            root.live_tokens()
    (root.records / "t1" / "state.jsonl").write_text("no\nno\n")
    assert root.live_tokens() == set()


def test_a_task_is_known_while_it_runs_and_after_its_end(root):
    assert not root.has("t1")
    record = add(root)
    assert root.has("t1")
    root.end(record)
    assert root.has("t1")
    assert list(root.own_records()) == []
    assert [record.task_id for record in root.all_records()] == ["t1"]


def test_a_job_that_ends_while_all_are_read_is_there_once(root):
    first, second = add(root, "t1"), add(root, "t2")
    found = root.all_records()
    read = [next(found).task_id]
    root.end(first)
    root.end(second)
    assert [*read, *(record.task_id for record in found)] == ["t1", "t2"]


def test_a_record_that_ended_before_is_replaced_by_its_new_end(root):
    root.end(add(root))
    root.end(add(root))
    assert len(list(root.all_records())) == 1


def test_records_are_found_by_every_name_a_person_has(root):
    record = add(root, "task-abc")
    record.append("admitted", kind="container", girder={"url": "http://g/job/64f0aa", "token": "t"})
    record.append("attempt", number=1, token="gw-1-zz", nonce="n")
    record.append("submitted", slurm_job_id="4711")
    add(root, "other")
    for text in ("task-abc", "task", "64f0aa", "64f", "4711", "gw-1-zz"):
        assert [found.task_id for found in root.find(text)] == ["task-abc"], text
    assert root.find("47") == []
    assert root.find("nothing") == []


def test_a_message_that_cannot_be_run_is_kept_with_the_reason(root):
    place = root.keep_unhandled({"task_id": "../t", "headers": {"x": 1}}, "not installed")
    assert place.parent == root.unhandled
    assert json.loads((place / "message.json").read_text())["headers"] == {"x": 1}
    assert "not installed" in (place / "reason.txt").read_text()
    assert root.keep_unhandled({"task_id": ""}, "no id").parent == root.unhandled


@pytest.mark.parametrize(
    "entry",
    [
        {"event": "submitted"},
        {"event": "verdict", "outcome": "of a newer version", "code": "", "sentence": ""},
        {"event": "attempt", "number": "x"},
    ],
)
def test_a_record_that_cannot_be_added_up_does_not_keep_the_worker_from_starting(tmp_path, entry):
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    bad = Record.create(root.records, {"task_id": "bad"}, worker_id="w1", at=0.0)
    Record.create(root.records, {"task_id": "good"}, worker_id="w1", at=0.0)
    with (bad.path / "state.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    with pytest.raises(RecordDamaged):
        Record.load(bad.path, worker_id="w1")
    assert [record.task_id for record in root.own_records()] == ["good"]
