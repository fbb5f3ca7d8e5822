"""A record is there as a whole or not at all, belongs to one worker, and is cut where a crash tore it."""

from __future__ import annotations

import json
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_slurm.errors import OwnershipLost, RecordDamaged
from girder_worker_slurm.job.state import Outcome, Phase, Verdict
from girder_worker_slurm.records.record import Record, directory_name, read_entries, write_durably

MESSAGE = {"task_id": "t1", "task": "x", "headers": {"token": "secret"}}


@pytest.fixture
def record(tmp_path):
    return Record.create(tmp_path, MESSAGE, worker_id="w1", at=5.0)


def load(record, worker_id="w1"):
    return Record.load(record.path, worker_id=worker_id)


def test_a_new_record_holds_message_owner_and_first_entry(record):
    again = load(record)
    assert again.message() == MESSAGE
    assert (again.owner(), again.epoch, again.task_id) == ("w1", 1, "t1")
    assert again.state.accepted_at == 5.0
    assert again.state == record.state


def test_a_second_record_of_a_task_is_none_and_leaves_the_first_alone(record, tmp_path):
    record.append("staged")
    assert Record.create(tmp_path, MESSAGE, worker_id="w2", at=9.0) is None
    assert load(record).state.phase is Phase.STAGED
    assert [path.name for path in tmp_path.iterdir()] == ["t1"]


@pytest.mark.fault("two workers on one queue", phases=("message received",))
def test_of_many_workers_that_create_one_record_exactly_one_does(tmp_path):
    gate = threading.Barrier(8)
    made = []

    def create(number):
        gate.wait()
        made.append(Record.create(tmp_path, MESSAGE, worker_id=f"w{number}", at=0.0))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [record for record in made if record is not None]
    assert len(winners) == 1
    assert load(winners[0]).owner() == winners[0].worker_id
    assert [path.name for path in tmp_path.iterdir()] == ["t1"]


@pytest.mark.fault("disk full", phases=("message received",))
def test_nothing_is_left_behind_when_the_disk_refuses(tmp_path, monkeypatch):
    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        Record.create(tmp_path, {"task_id": "t1"}, worker_id="w1", at=0.0)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_unicode_can_be_kept(tmp_path):
    record = Record.create(tmp_path, {"task_id": "t1", "message": "\ud800"}, worker_id="w1", at=0.0)
    assert record.message()["message"] == "\ud800"


def test_nobody_else_can_read_a_record(record):
    record.append("staged")
    assert record.path.stat().st_mode & 0o777 == 0o700
    for path in record.path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


@pytest.mark.parametrize(
    "task_id", ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "x" * 300, "größe", "a b", "a\n", "-rf"]
)
def test_an_odd_task_id_gets_a_directory_of_its_own(tmp_path, task_id):
    name = directory_name(task_id)
    assert "/" not in name
    assert not name.startswith((".", "-"))
    assert len(name) < 120
    record = Record.create(tmp_path, {"task_id": task_id}, worker_id="w1", at=0.0)
    assert record.path.parent == tmp_path
    assert load(record).task_id == task_id


@given(st.text(), st.text())
def test_different_tasks_have_different_directories(first, second):
    assert (directory_name(first) == directory_name(second)) == (first == second)


def test_a_half_written_last_line_is_cut_off(record):
    record.append("staged")
    with (record.path / "state.jsonl").open("ab") as file:
        file.write(b'{"event": "rendered", "x')
    again = load(record)
    assert again.state.phase is Phase.STAGED
    again.append("rendered")
    assert load(record).state.phase is Phase.RENDERED


@given(st.integers(0, 200))
@pytest.mark.fault(
    "power cut between write and sync",
    phases=("directory written", "intent written", "submitted", "ended", "outputs uploading"),
)
def test_wherever_a_crash_tears_the_file_the_entries_before_are_kept(tmp_path_factory, size):
    path = tmp_path_factory.mktemp("x") / "state.jsonl"
    entries = [{"event": "upload", "key": f"ä{number}", "upload_id": "u"} for number in range(4)]
    data = b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)
    size = min(size, len(data))
    path.write_bytes(data[:size])
    complete = data[:size].count(b"\n")
    assert list(read_entries(path)) == entries[:complete]
    assert list(read_entries(path)) == entries[:complete]


def test_a_record_of_many_outputs_is_read_without_having_all_entries_in_memory(record):
    """Of 100,000 files they were 200 MB, which a restarted worker then kept."""
    count = 10_000
    with (record.path / "state.jsonl").open("a", encoding="utf-8") as file:
        for number in range(count):
            key = f"0:parts/part-{number}.txt"
            for entry in (
                {"event": "upload", "key": key, "upload_id": "6" * 24},
                {"event": "upload_at", "key": key, "offset": 10},
                {"event": "uploaded", "key": key},
            ):
                file.write(json.dumps(entry) + "\n")
    tracemalloc.start()
    state = load(record).state
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(state.uploaded), state.uploads) == (count, {})
    assert peak_bytes < 500 * count


def test_a_last_line_that_is_complete_but_nonsense_is_cut_off(record):
    with (record.path / "state.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n")
    assert load(record).state.phase is Phase.ACCEPTED


def test_damage_in_the_middle_is_damage(record):
    data = (record.path / "state.jsonl").read_bytes()
    (record.path / "state.jsonl").write_bytes(b"\0\0\n" + data)
    with pytest.raises(RecordDamaged, match="byte 0"):
        load(record)


@pytest.mark.fault("power cut between write and sync", phases=("directory written",))
def test_a_record_without_any_entry_is_an_accepted_job(record):
    (record.path / "state.jsonl").write_bytes(b"")
    assert load(record).state.phase is Phase.ACCEPTED
    (record.path / "state.jsonl").unlink()
    assert load(record).state.phase is Phase.ACCEPTED


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_message_that_cannot_be_read_is_damage(record, text):
    (record.path / "message.json").write_text(text)
    with pytest.raises(RecordDamaged):
        record.message()


def test_a_record_that_is_not_there_is_damage(tmp_path):
    with pytest.raises(RecordDamaged):
        Record.load(tmp_path / "nothing", worker_id="w1")


def test_a_worker_that_takes_over_is_the_owner_and_the_other_may_write_no_more(record):
    other = load(record, "w2")
    assert other.take_over()
    other.append("staged")
    for action in (lambda: record.append("rendered"), record.check_ownership, lambda: record.decide(VERDICT)):
        with pytest.raises(OwnershipLost):
            action()
    assert load(record).owner() == "w2"
    assert load(record).state.phase is Phase.STAGED


@pytest.mark.fault("second worker takes over", phases=("directory written",))
def test_of_many_workers_that_take_over_exactly_one_does(record):
    others = [load(record, f"w{number}") for number in range(2, 10)]
    gate = threading.Barrier(len(others))
    won = []

    def take(other):
        gate.wait()
        if other.take_over():
            won.append(other.worker_id)

    threads = [threading.Thread(target=take, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert load(record).owner() == won[0]
    assert not list(record.path.glob(".owner-*"))


def test_a_job_may_be_taken_over_again_and_again(record):
    for number in range(2, 15):
        assert load(record, f"w{number}").take_over()
    assert (load(record).owner(), load(record).epoch) == ("w14", 14)


VERDICT = Verdict(Outcome.SUCCESS, "completed", "Größer.")


def test_a_verdict_survives_its_record(record):
    record.decide(VERDICT)
    assert load(record).state.verdict == VERDICT


def test_what_is_no_json_is_kept_as_text(record, tmp_path):
    record.append("rendered", path=tmp_path)
    assert list(read_entries(record.path / "state.jsonl"))[-1]["path"] == str(tmp_path)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x"
    write_durably(path, "one")
    write_durably(path, "two", sync=False)
    assert path.read_text() == "two"
    with pytest.raises(UnicodeEncodeError):
        write_durably(path, "\ud800")
    assert path.read_text() == "two"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_many_records_are_taken_over_with_one_mark_and_also_when_it_is_gone(tmp_path):
    records = [Record.create(tmp_path, {"task_id": f"m{n}"}, worker_id="w1", at=0.0) for n in range(3)]
    mark = tmp_path / "mark"
    mark.write_text("w2", encoding="utf-8")
    first, second, third = (Record.load(record.path, worker_id="w2") for record in records)
    assert first.take_over(mark)
    assert second.take_over(mark)
    mark.unlink()
    assert third.take_over(mark)
    assert [load(record).owner() for record in records] == ["w2", "w2", "w2"]
    with pytest.raises(OwnershipLost):
        records[1].check_ownership()
