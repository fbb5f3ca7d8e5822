"""`log`."""

from __future__ import annotations

import io

import pytest

from girder_worker_singularity.terminal import TerminalOutput
from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cli.log_command import LogPrinter, tail_offset
from tests.unit.slurm.cli.conftest import attempt


class ClockWithEvents(FakeClock):
    """Something happens at each sleep, in order; one sleep too many is an error."""

    def __init__(self, *events) -> None:
        super().__init__()
        self._events = list(events)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._events.pop(0)()


def with_log(jobs, path, text):
    path.write_text(text)
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    record.append("attempt", **attempt("task-1", str(path)))
    return record


def test_the_whole_log_is_printed_byte_by_byte(jobs, tmp_path):
    with_log(jobs, tmp_path / "log", "").append("staged")
    (tmp_path / "log").write_bytes(b"one\r50%\r\ntwo \xff\n")

    assert jobs.run("log", "task-1").stdout_bytes == b"one\r50%\r\ntwo \xff\n"


def test_tail_begins_with_the_last_lines(jobs, tmp_path):
    with_log(jobs, tmp_path / "log", "one\ntwo\nthree\n")

    assert jobs.run("log", "task-1", "--tail", "2").stdout == "two\nthree\n"


def test_without_the_full_log_what_girder_has_is_printed(jobs, tmp_path):
    record = with_log(jobs, tmp_path / "log", "")
    (tmp_path / "log").unlink()
    (record.path / "girder.log").write_text("for Girder\n")

    assert jobs.run("log", "task-1").stdout == "for Girder\n"


def test_a_job_without_any_log_says_so(jobs):
    jobs.job("task-1", girder_id="66a1")

    result = jobs.run("log", "task-1")

    assert result.exit_code == 1
    assert "no log yet" in result.stderr


def test_follow_prints_what_comes_and_stops_at_the_end(jobs, tmp_path):
    log, out = tmp_path / "log", io.BytesIO()
    record = with_log(jobs, log, "one\n")

    def write():
        with log.open("a") as handle:
            handle.write("two\n")

    def end():
        write()
        record.append("verdict", outcome="success", code="x", sentence="Done.")
        record.append("closed", at=1.0)
        jobs.root.end(record)

    clock = ClockWithEvents(write, lambda: None, end)
    LogPrinter(jobs.root, record, out, clock).copy(follow=True)

    assert out.getvalue() == b"one\ntwo\ntwo\n"


def test_follow_waits_for_the_log_to_appear(jobs, tmp_path):
    out = io.BytesIO()
    record = with_log(jobs, tmp_path / "log", "")
    (tmp_path / "log").unlink()

    def end():
        (tmp_path / "log").write_text("late\n")
        record.append("verdict", outcome="success", code="x", sentence="Done.")

    LogPrinter(jobs.root, record, out, ClockWithEvents(lambda: None, end)).copy(follow=True)

    assert out.getvalue() == b"late\n"


def test_following_an_ended_job_prints_and_exits(jobs, tmp_path):
    record = with_log(jobs, tmp_path / "log", "all\n")
    record.append("verdict", outcome="error", code="x", sentence="Failed.")

    assert jobs.run("log", "-f", "task-1").stdout == "all\n"


@pytest.mark.parametrize(
    ("text", "count", "rest"),
    [
        ("", 3, ""),
        ("a\nb\n", 0, ""),
        ("a\nb\n", 1, "b\n"),
        ("a\nb", 1, "b"),
        ("a\nb\n", 9, "a\nb\n"),
        ("a\n\n", 1, "\n"),
    ],
)
def test_the_last_lines_begin_where_they_begin(tmp_path, text, count, rest):
    path = tmp_path / "text"
    path.write_text(text)

    assert text[tail_offset(path, count) :] == rest


def test_the_last_lines_of_a_long_log_are_found(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"x" * 99 + b"\n" + (b"y" * 99_999 + b"\n") * 9)

    assert tail_offset(path, 9) == 100


def test_a_terminal_is_shown_what_it_would_obey(jobs, tmp_path):
    record = with_log(jobs, tmp_path / "log", "10%\r20%\nred \x1b[31m\x1b]0;owned\x07 end\n")
    out = io.BytesIO()

    LogPrinter(jobs.root, record, TerminalOutput(out), FakeClock()).copy(follow=False)

    assert out.getvalue() == b"10%\n20%\nred ^[[31m^[]0;owned^G end\n"
