"""Files of another Unix user, through a program that runs as them and that they may stop."""

from __future__ import annotations

import contextlib
import errno
import io
import os

import pytest

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cluster.frames import PROTOCOL, frame
from girder_worker_slurm.cluster.run_as import AccountAway
from girder_worker_slurm.cluster.user_run_files import UserRunFiles, UserUnreachable


class Program:
    """A `girder-slurm-files` that says who it is, and then answers, or nothing as long as one waits."""

    def __init__(self, clock, *, is_stopped):
        self._clock = clock
        self.is_stopped = is_stopped
        self.is_ended = False
        hello = {"program": "girder-slurm-files", "protocol": PROTOCOL, "uid": os.getuid()}
        self._said = io.BytesIO(frame(hello))

    def send(self, data, *, timeout_seconds):
        del data, timeout_seconds
        self._said = io.BytesIO(b"" if self.is_stopped else frame({"value": []}))

    def receive(self, count, *, timeout_seconds):
        data = self._said.read(count)
        if len(data) < count:
            self._clock.advance(timeout_seconds)
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        return data

    def last_words(self):
        return ""

    def close(self):
        self.is_ended = True


def files_of_a_user(tmp_path, clock, *, is_stopped):
    programs = []

    def start():
        programs.append(Program(clock, is_stopped=is_stopped))
        return programs[-1]

    made = UserRunFiles(
        "daemon", tmp_path / "r", uid=os.getuid(), transfers=tmp_path, start=start, clock=clock
    )
    return made, programs


def test_a_user_who_stops_the_program_that_runs_as_them_does_not_stop_all_others(tmp_path):
    """The thread that looks at all events waited half a minute for it, every half a minute: `kill -STOP` in a loop."""
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=True)
    waited, until = 0.0, clock.monotonic() + 4 * 3600
    while clock.monotonic() < until:
        begun = clock.monotonic()
        with pytest.raises(UserUnreachable):
            made.events()
        waited += clock.monotonic() - begun
        clock.advance(0.25)
    assert waited < 0.08 * 4 * 3600
    assert all(program.is_ended for program in programs)


def test_a_directory_service_that_does_not_answer_is_not_asked_at_each_look(tmp_path):
    """It may take half a minute to say nothing, and the thread that looks at all events waits for it."""
    clock = FakeClock()
    asked = []

    def start():
        asked.append(clock.monotonic())
        raise AccountAway("The Unix user daemon, who was known here today, is not found now.")

    made = UserRunFiles(
        "daemon", tmp_path / "r", uid=os.getuid(), transfers=tmp_path, start=start, clock=clock
    )
    for _ in range(240):
        with pytest.raises(UserUnreachable, match="known here today") as caught:
            made.events()
        assert not caught.value.is_refused
        clock.advance(0.25)
    assert len(asked) == 3


def test_a_file_system_that_was_slow_once_is_tried_again_soon(tmp_path):
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=True)
    with pytest.raises(UserUnreachable):
        made.events()
    programs.clear()
    clock.advance(41.0)
    made._start = lambda: Program(clock, is_stopped=False)
    assert made.events() == []


def test_a_program_that_is_let_go_on_for_a_moment_is_left_alone_for_longer_all_the_same(tmp_path):
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=False)
    waited, until = 0.0, clock.monotonic() + 4 * 3600
    while clock.monotonic() < until:
        begun = clock.monotonic()
        with contextlib.suppress(UserUnreachable):
            made.events()
            programs[-1].is_stopped = True
        waited += clock.monotonic() - begun
        clock.advance(0.25)
    assert waited < 0.08 * 4 * 3600


def test_programs_of_users_whose_jobs_are_over_are_ended(tmp_path):
    """Two processes for each Unix user who ever had a job, until the worker was stopped."""
    clock = FakeClock()
    made, programs = files_of_a_user(tmp_path, clock, is_stopped=False)
    made.events()
    made.close_idle()
    assert [program.is_ended for program in programs] == [False]
    clock.advance(601.0)
    made.close_idle()
    assert [program.is_ended for program in programs] == [True]
    assert made.events() == []
    assert len(programs) == 2
