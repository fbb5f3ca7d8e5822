"""The log on its way to Girder: whatever dies in between, each line arrives once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.girder.log_feed import LogFeed


class GirderLog:
    """A job's log as Girder keeps it (girder_jobs 5.0.21, Job._updateLog)."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def put(self, update) -> None:
        if update.overwrite:
            self.entries = [update.text]
        elif update.text:
            self.entries.append(update.text)
            self.entries = self.entries[-((4 * 1024**2) // len(update.text)) :]

    @property
    def text(self) -> str:
        return "".join(self.entries)


class Bench:
    def __init__(self, tmp_path, limit_bytes=3_000_000):
        self.record = tmp_path / "record"
        self.record.mkdir(parents=True)
        self.output = tmp_path / "output.log"
        self.limit = limit_bytes
        self.girder = GirderLog()
        self.feed = None
        self.reload()

    def reload(self):
        """What a restarted worker has."""
        self.feed = LogFeed(self.record, self.output, RunDirectories(self.record), limit_bytes=self.limit)

    def write(self, data):
        with self.output.open("ab") as file:
            file.write(data if isinstance(data, bytes) else data.encode())

    def send(self, arrives=True, is_answered=True):
        if self.feed.has_doubt:
            self.feed.settle_doubt(self.girder.text)
        update = self.feed.next_update()
        if update is None:
            return False
        if arrives:
            self.girder.put(update)
            if is_answered:
                self.feed.update_arrived(update)
        return True

    def send_all(self):
        while self.send():
            pass


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_lines_arrive_in_their_order_with_the_workers_own(bench):
    bench.feed.note("Submitted.")
    bench.write("one\ntwo")
    bench.feed.read(final=True)
    bench.feed.note("Done.")
    bench.send_all()
    assert bench.girder.text == "Submitted.\none\ntwo\nDone.\n"
    assert not bench.feed.has_pending


def test_what_is_sent_is_not_sent_again(bench):
    bench.write("one\n")
    bench.feed.read()
    bench.send_all()
    assert not bench.feed.has_new_output()
    bench.write("two\n")
    assert bench.feed.has_new_output()
    bench.feed.read()
    assert bench.feed.next_update().text == "two\n"


def test_an_output_that_is_not_there_yet_is_no_error(bench):
    assert not bench.feed.has_new_output()
    assert not bench.feed.read()
    assert bench.feed.next_update() is None


def test_progress_and_message_are_told_and_not_in_the_text(bench):
    bench.write("a\n<filter-progress>0.5</filter-progress>\n<filter-comment>half</filter-comment>\nb\n")
    bench.feed.read()
    bench.send_all()
    assert (bench.feed.progress, bench.feed.message, bench.girder.text) == (0.5, "half", "a\nb\n")


def test_a_character_that_came_half_waits_for_its_other_half(bench):
    whole = "Ω".encode()
    bench.write(b"a" + whole[:1])
    bench.feed.read()
    bench.send_all()
    bench.write(whole[1:] + b"b")
    bench.feed.read()
    bench.send_all()
    assert bench.girder.text == "aΩb"


def test_a_half_character_at_the_very_end_is_replaced(bench):
    bench.write(b"a\xce")
    bench.feed.read(final=True)
    bench.send_all()
    assert bench.girder.text == "a\ufffd"


def test_long_updates_are_cut_between_characters(bench):
    text = "Ω" * 700_000
    bench.write(text)
    bench.feed.read(final=True)
    bench.feed._position.entries = -2 + 1  # as if Girder took any length: only the cut is looked at here
    updates = []
    while (update := bench.feed.next_update()) is not None:
        updates.append(update.text)
        bench.feed.update_arrived(update)
    assert "".join(updates) == text
    assert len(updates) > 1


def test_an_update_that_never_arrived_is_sent_again(bench):
    bench.write("one\n")
    bench.feed.read()
    bench.send(arrives=False)
    assert bench.feed.has_doubt
    bench.send_all()
    assert bench.girder.text == "one\n"


def test_an_update_whose_answer_was_lost_is_not_sent_again(bench):
    bench.write("one\n")
    bench.feed.read()
    bench.send(is_answered=False)
    bench.send_all()
    assert bench.girder.text == "one\n"
    assert not bench.feed.has_doubt


LINES = st.lists(st.text(alphabet="abcΩ\n", min_size=1, max_size=6), min_size=1, max_size=8)
WAYS = st.lists(st.sampled_from(["arrives", "unanswered", "lost"]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(LINES, WAYS, st.booleans())
def test_a_death_after_any_step_loses_and_repeats_nothing(tmp_path_factory, lines, ways, dies):
    bench = Bench(tmp_path_factory.mktemp("feed"))
    expected = ""
    for number, line in enumerate(lines):
        # Numbered, since two updates that are the same cannot be told apart by Girder's end alone.
        text = f"{number}:{line}"
        expected += text
        bench.write(text)
        bench.feed.read()
        if dies:
            bench.reload()
        way = ways[number % len(ways)]
        bench.send(arrives=way != "lost", is_answered=way == "arrives")
        if dies:
            bench.reload()
    bench.feed.read(final=True)
    if dies:
        bench.reload()
    bench.send_all()
    assert bench.girder.text == expected


def test_a_death_between_the_text_and_its_position_loses_and_repeats_nothing(bench):
    bench.write("one\n")
    bench.feed.read()
    position = (bench.record / "log.json").read_bytes()
    bench.write("two\n")
    bench.feed.read()
    (bench.record / "log.json").write_bytes(
        position
    )  # the text is there, the worker died before its position was
    bench.reload()
    bench.feed.read(final=True)
    bench.send_all()
    assert bench.girder.text == "one\ntwo\n"


def test_a_position_that_cannot_be_read_is_no_error(bench):
    (bench.record / "log.json").write_bytes(b"\0\0")
    bench.reload()
    bench.write("one\n")
    bench.feed.read()
    bench.send_all()
    assert bench.girder.text == "one\n"


@pytest.mark.parametrize("left", [b"", None])
@pytest.mark.fault("power cut between write and sync", phases=("running",))
def test_a_log_of_which_is_not_known_what_girder_has_is_written_anew(tmp_path, left):
    """All of it came a second time, behind the first."""
    bench = Bench(tmp_path)
    for line in ("one\n", "two\n"):
        bench.write(line)
        bench.feed.read()
        bench.send()
    assert bench.girder.text == "one\ntwo\n"
    if left is None:
        (bench.record / "log.json").unlink()
    else:
        (bench.record / "log.json").write_bytes(left)
    bench.reload()
    bench.write("three\n")
    bench.feed.read()
    for _ in range(3):
        bench.send()
    assert bench.girder.text == "one\ntwo\nthree\n"


def test_many_short_updates_are_not_pushed_out_by_a_long_one(bench):
    expected = ""
    for number in range(200):
        bench.write(f"short {number}\n")
        expected += f"short {number}\n"
        bench.feed.read()
        bench.send_all()
    long = "".join(f"long line {number:06d}\n" for number in range(20_000))
    bench.write(long)
    bench.feed.read(final=True)
    bench.send_all()
    assert bench.girder.text == expected + long


def test_an_overwrite_whose_answer_was_lost_is_settled_as_well(bench):
    for number in range(100):
        bench.write(f"short {number}\n")
        bench.feed.read()
        bench.send_all()
    before = bench.girder.text
    bench.write("x" * 300_000 + "\n")
    bench.feed.read(final=True)
    assert bench.send(is_answered=False)
    bench.reload()
    bench.send_all()
    assert bench.girder.text == before + "x" * 300_000 + "\n"


def test_a_log_that_is_too_long_has_head_note_and_tail(tmp_path):
    bench = Bench(tmp_path, limit_bytes=100_000)
    lines = [f"line {number:06d}\n" for number in range(50_000)]
    for start in range(0, len(lines), 10_000):
        bench.write("".join(lines[start : start + 10_000]))
        bench.feed.read()
        bench.send_all()
    bench.feed.read(final=True)
    bench.feed.note("Done.")
    bench.send_all()
    text = bench.girder.text
    assert text.startswith("line 000000\n")
    assert "longer than Girder keeps" in text
    assert "bytes are left out here" in text
    assert text.endswith("line 049999\nDone.\n")
    assert bench.output.stat().st_size == sum(map(len, lines))


def test_a_log_that_is_just_too_long_repeats_and_loses_nothing(tmp_path):
    bench = Bench(tmp_path, limit_bytes=10_000)
    lines = [f"line {number:06d}\n" for number in range(750)]
    bench.write("".join(lines))
    bench.feed.read(final=True)
    bench.send_all()
    kept = [line for line in bench.girder.text.splitlines(keepends=True) if line.startswith("line")]
    assert kept == lines


def test_a_death_before_the_tail_of_a_long_log_does_not_repeat_it(tmp_path):
    bench = Bench(tmp_path, limit_bytes=10_000)
    bench.write("".join(f"line {number:06d}\n" for number in range(60_000)))
    bench.feed.read()
    bench.reload()
    bench.feed.read(final=True)
    bench.reload()
    bench.feed.read(final=True)
    bench.send_all()
    assert bench.girder.text.count("line 059999\n") == 1
    assert bench.girder.text.count("left out here") == 1


def test_the_end_of_an_endless_log_is_read_without_all_before_it(tmp_path):
    """All of it was read at the end, by a thread that other jobs' ends wait for: 100 GB are an hour."""

    class Counting(RunDirectories):
        seen = 0

        def read_at(self, path, start, length):
            data = super().read_at(path, start, length)
            self.seen += len(data)
            return data

    output = tmp_path / "output.log"
    with output.open("wb") as log:
        log.write(b"the beginning\n" * 100_000)
        log.seek(50_000_000)
        log.write(b"the end\n")
    files = Counting(tmp_path)
    feed = LogFeed(tmp_path, output, files, limit_bytes=1_000_000)
    feed.read(final=True)
    assert files.seen < 3_000_000
    text = (tmp_path / "girder.log").read_text()
    assert text.startswith("the beginning\n")
    assert text.endswith("the end\n")
    assert "bytes are left out here" in text
    assert not feed.has_new_output()


def test_the_record_is_private(bench):
    bench.feed.note("x")
    for name in ("girder.log", "log.json"):
        assert (bench.record / name).stat().st_mode & 0o077 == 0


def test_a_crash_before_the_first_position_is_saved_loses_and_repeats_nothing(tmp_path):
    (tmp_path / "girder.log").write_bytes(b"one\n")  # written; the worker died before log.json was
    output = tmp_path / "output.log"
    output.write_bytes(b"one\ntwo\n")
    feed = LogFeed(tmp_path, output, RunDirectories(tmp_path), limit_bytes=1000)
    feed.read(final=True)
    assert feed.next_update().text == "one\ntwo\n"


@pytest.mark.fault("disk full", phases=("running",))
def test_what_a_full_disk_left_of_a_piece_of_log_does_not_shift_what_follows(tmp_path):
    """The next piece stood behind it, and Girder got as many bytes from the wrong place."""
    feed = LogFeed(tmp_path, None, RunDirectories(tmp_path), limit_bytes=10**6)
    feed.note("first")
    with (tmp_path / "girder.log").open("ab") as log:
        log.write(b"half of someth")
    feed.note("second")
    assert feed.next_update().text == "first\nsecond\n"


def test_the_text_of_progress_is_known_after_a_restart(bench):
    bench.write("<filter-comment>Counting</filter-comment>\n")
    bench.feed.read()
    bench.reload()
    assert bench.feed.message == "Counting"


def test_how_far_the_output_can_be_read_counts_and_not_what_a_mount_remembers_of_its_length(
    bench, monkeypatch
):
    """A log was cut off where it had been when its length was last asked for."""
    monkeypatch.setattr(RunDirectories, "size", lambda _runs, _path, **_how: 3)
    bench.write("0123456789")
    assert bench.feed.reaches(10)
    assert not bench.feed.reaches(11)
    bench.feed.read(final=True)
    bench.output.unlink()
    assert bench.feed.reaches(10)
