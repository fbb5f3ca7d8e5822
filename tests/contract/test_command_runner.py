"""What every CommandRunner does, the real one and the fake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from girder_worker_singularity.command_runner import (
    CommandError,
    CommandNotFound,
    CommandRunner,
    CommandStopped,
    CommandTimeout,
    LocalCommandRunner,
)
from girder_worker_singularity.testing import FakeAnswer, FakeCall, FakeCommandRunner

SCRIPTS = {
    "echo one; echo two >&2; exit 3": FakeAnswer(3, "one\n", "two\n"),
    "echo one; echo two; exit 3": FakeAnswer(3, "one\ntwo\n"),
    "printf 'a\\rb\\nc'": FakeAnswer(0, "a\rb\nc"),
    "echo early; sleep 60": FakeAnswer(0, "early\n", takes_seconds=60),
    "printf '\\303\\251\\377'": FakeAnswer(0, "é�"),
}


def pretended_shell(call: FakeCall) -> FakeAnswer:
    script = call.argv[2]
    if script == "cat":
        return FakeAnswer(0, call.stdin or "")
    if script == 'echo "$A"':
        return FakeAnswer(0, f"{(call.env or os.environ).get('A', '')}\n")
    if script == "pwd -P":
        return FakeAnswer(0, f"{call.cwd}\n")
    if script == 'printf "<%s>" "$@"':
        return FakeAnswer(0, "".join(f"<{argument}>" for argument in call.argv[4:]))
    return SCRIPTS[script]


@pytest.fixture(params=["local", "fake"])
def runner(request) -> CommandRunner:
    return LocalCommandRunner() if request.param == "local" else FakeCommandRunner({"sh": pretended_shell})


def sh(script: str, *arguments: str) -> list[str]:
    return ["sh", "-c", script, *(("sh", *arguments) if arguments else ())]


class TestEveryRunner:
    def test_a_failing_program_is_a_result(self, runner):
        result = runner.run(sh("echo one; echo two >&2; exit 3"), timeout_seconds=20)
        assert (result.returncode, result.stdout, result.stderr) == (3, "one\n", "two\n")
        assert result.argv == ("sh", "-c", "echo one; echo two >&2; exit 3")
        assert not result.truncated

    def test_arguments_arrive_as_they_are(self, runner):
        odd = ["a $(id)", '"q"', "'x'", ";é", "", "-n", "*", "x\ny"]
        result = runner.run(sh('printf "<%s>" "$@"', *odd), timeout_seconds=20)
        assert result.stdout == "".join(f"<{argument}>" for argument in odd)

    def test_a_program_that_does_not_exist_is_named(self, runner):
        with pytest.raises(CommandNotFound, match="no-such-program"):
            runner.run(["no-such-program"], timeout_seconds=20)
        with pytest.raises(CommandNotFound):
            runner.stream(["no-such-program"], timeout_seconds=20, on_line=print)

    def test_input_is_handed_over_and_empty_by_default(self, runner):
        assert runner.run(sh("cat"), timeout_seconds=20, stdin="é\n").stdout == "é\n"
        assert runner.run(sh("cat"), timeout_seconds=20).stdout == ""

    def test_a_given_environment_replaces_the_own_one(self, runner, monkeypatch):
        monkeypatch.setenv("A", "inherited")
        assert runner.run(sh('echo "$A"'), timeout_seconds=20).stdout == "inherited\n"
        environment = {"A": "given", "PATH": os.environ["PATH"]}
        assert runner.run(sh('echo "$A"'), timeout_seconds=20, env=environment).stdout == "given\n"

    def test_it_runs_in_the_given_directory(self, runner, tmp_path):
        assert (
            runner.run(sh("pwd -P"), timeout_seconds=20, cwd=tmp_path.resolve()).stdout
            == f"{tmp_path.resolve()}\n"
        )

    def test_what_was_printed_before_the_time_was_up_is_kept(self, runner):
        with pytest.raises(CommandTimeout) as caught:
            runner.run(sh("echo early; sleep 60"), timeout_seconds=0.5)
        assert caught.value.stdout == "early\n"
        assert caught.value.timeout_seconds == 0.5
        assert caught.value.argv[0] == "sh"

    def test_bytes_that_are_no_text_are_replaced(self, runner):
        assert runner.run(sh("printf '\\303\\251\\377'"), timeout_seconds=20).stdout == "é�"

    def test_lines_are_handed_over_in_order(self, runner):
        lines: list[str] = []
        result = runner.stream(sh("echo one; echo two; exit 3"), timeout_seconds=20, on_line=lines.append)
        assert lines == ["one", "two"]
        assert (result.returncode, result.stdout, result.stderr) == (3, "one\ntwo\n", "")

    def test_errors_are_mixed_into_the_lines(self, runner):
        lines: list[str] = []
        runner.stream(sh("echo one; echo two >&2; exit 3"), timeout_seconds=20, on_line=lines.append)
        assert sorted(lines) == ["one", "two"]

    def test_a_carriage_return_ends_a_line(self, runner):
        lines: list[str] = []
        runner.stream(sh("printf 'a\\rb\\nc'"), timeout_seconds=20, on_line=lines.append)
        assert lines == ["a", "b", "c"]

    def test_a_stream_ends_when_its_time_is_up(self, runner):
        with pytest.raises(CommandTimeout):
            runner.stream(sh("echo early; sleep 60"), timeout_seconds=0.5, on_line=lambda _line: None)

    def test_a_program_is_ended_when_its_caller_wants_it(self, runner):
        started = time.monotonic()
        with pytest.raises(CommandStopped) as caught:
            runner.run(
                sh("echo early; sleep 60"),
                timeout_seconds=70,
                should_stop=lambda: time.monotonic() - started > 0.3 or isinstance(runner, FakeCommandRunner),
            )
        assert caught.value.stdout == "early\n"
        assert time.monotonic() - started < 10

    def test_a_program_that_may_go_on_ends_as_it_likes(self, runner):
        result = runner.run(
            sh("echo one; echo two >&2; exit 3"), timeout_seconds=20, should_stop=lambda: False
        )
        assert (result.returncode, result.stdout, result.stderr) == (3, "one\n", "two\n")

    def test_a_stream_ends_when_it_is_told_to(self, runner):
        lines: list[str] = []
        with pytest.raises(CommandStopped):
            runner.stream(
                sh("echo early; sleep 60"),
                timeout_seconds=70,
                on_line=lines.append,
                should_stop=lambda: bool(lines),
            )
        assert lines == ["early"]


@dataclass
class Processes:
    """Finds the processes of a test by a word in their command lines."""

    word: str

    def alive(self) -> bool:
        return subprocess.run(["pgrep", "-f", self.word], capture_output=True, check=False).returncode == 0

    def gone_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True


class TestTheRealRunner:
    def test_the_whole_process_group_is_killed_when_the_time_is_up(self):
        processes = Processes("sleep 61.0625")
        with pytest.raises(CommandTimeout):
            LocalCommandRunner().run(sh("sleep 61.0625 & sleep 61.0625"), timeout_seconds=0.3)
        assert processes.gone_within(2)

    def test_process_groups_that_it_made_are_killed_too(self):
        processes = Processes("sleep 65.0625")
        with pytest.raises(CommandTimeout):
            LocalCommandRunner().run(["bash", "-c", "set -m; sleep 65.0625 & wait"], timeout_seconds=0.5)
        assert processes.gone_within(2)

    def test_a_program_that_ignores_the_polite_signal_is_killed(self):
        script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(62)"
        started = time.monotonic()
        with pytest.raises(CommandTimeout) as caught:
            LocalCommandRunner().run([sys.executable, "-c", script], timeout_seconds=1)
        assert caught.value.stdout == "1\n"
        assert time.monotonic() - started < 10

    def test_a_child_that_keeps_the_pipes_open_does_not_hold_the_answer_back(self):
        started = time.monotonic()
        result = LocalCommandRunner().run(sh("sleep 5 & echo done"), timeout_seconds=30)
        assert result.stdout == "done\n"
        assert time.monotonic() - started < 4

    def test_a_signal_is_a_negative_return_code(self):
        assert LocalCommandRunner().run(sh("kill -9 $$"), timeout_seconds=20).returncode == -signal.SIGKILL

    def test_the_middle_of_a_long_output_is_left_out_and_said_so(self):
        script = "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo last"
        result = LocalCommandRunner(output_limit_bytes=1000).run(sh(script), timeout_seconds=60)
        assert result.truncated
        assert result.stdout.startswith("first\n")
        assert result.stdout.endswith("last\n")
        assert len(result.stdout) < 2100

    def test_an_output_below_the_limit_is_whole(self):
        result = LocalCommandRunner().run(sh("head -c 2000000 /dev/zero | tr '\\0' x"), timeout_seconds=60)
        assert not result.truncated
        assert len(result.stdout) == 2_000_000

    def test_a_long_input_and_output_do_not_block_each_other(self):
        text = "0123456789" * 100_000
        assert LocalCommandRunner().run(sh("cat"), timeout_seconds=60, stdin=text).stdout == text

    def test_a_program_may_leave_its_input_unread(self):
        result = LocalCommandRunner().run(sh("exec true"), timeout_seconds=20, stdin="x" * 1_000_000)
        assert result.returncode == 0

    def test_an_error_of_the_listener_kills_the_program_and_is_passed_on(self):
        processes = Processes("sleep 63.0625")

        def fail(line: str) -> None:
            raise RuntimeError(line)

        with pytest.raises(RuntimeError, match="one"):
            LocalCommandRunner().stream(sh("echo one; sleep 63.0625"), timeout_seconds=60, on_line=fail)
        assert processes.gone_within(2)

    def test_a_missing_directory_is_not_called_a_missing_program(self, tmp_path):
        with pytest.raises(CommandError, match="no such directory"):
            LocalCommandRunner().run(["true"], timeout_seconds=20, cwd=tmp_path / "nothing")

    def test_a_file_that_is_not_executable_is_not_found(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(CommandNotFound):
            LocalCommandRunner().run([str(tmp_path / "x")], timeout_seconds=20)

    def test_too_many_arguments_are_an_error_of_ours(self):
        with pytest.raises(CommandError, match="too long"):
            LocalCommandRunner().run(["true", "x" * 3_000_000], timeout_seconds=20)

    def test_a_lost_exit_status_is_not_taken_for_success(self):
        script = (
            "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
            "from girder_worker_singularity.command_runner import *\n"
            "try: print(LocalCommandRunner().run(['false'], timeout_seconds=20).returncode)\n"
            "except CommandError as error: print('error', error)\n"
        )
        seen = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
        assert seen.stdout.startswith("error")

    def test_no_descriptor_is_left_open(self):
        runner = LocalCommandRunner()
        runner.run(["true"], timeout_seconds=20)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            runner.run(["true"], timeout_seconds=20, stdin="x")
        with pytest.raises(CommandTimeout):
            runner.run(["sleep", "64"], timeout_seconds=0.1)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
