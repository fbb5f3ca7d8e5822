"""Stand-ins for the outside world, for tests here and of whoever builds on these packages.

The contract tests run them and the real thing through the same cases.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import (
    CommandNotFound,
    CommandResult,
    CommandStopped,
    CommandTimeout,
)

if TYPE_CHECKING:
    from pathlib import Path


class FakeClock:
    """A clock that only moves when somebody sleeps or calls `advance`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def now(self) -> float:
        """The pretended seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """The pretended seconds since the start of the host."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Move the time on, without waiting."""
        self.slept.append(seconds)
        self.advance(seconds)

    def jump(self, seconds: float) -> None:
        """Set the time of day forward, or back, while no time passes."""
        self._now += seconds

    def advance(self, seconds: float) -> None:
        """Let that much time pass."""
        with self._lock:
            self._now += seconds
            self._monotonic += seconds


@dataclass(frozen=True)
class FakeCall:
    """What a program was started with."""

    argv: tuple[str, ...]
    timeout_seconds: float
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    stdin: str | None = None


@dataclass(frozen=True)
class FakeAnswer:
    """What a pretended program does."""

    returncode: int = 0
    stdout: str = ""
    stderr: str = ""
    takes_seconds: float = 0.0


FakeProgram = Callable[[FakeCall], FakeAnswer]


class FakeCommandRunner:
    """Answers calls from a script: program name → answer, or a function of the call.

    A program that is not in the script is not found. Every call is kept in `calls`.
    """

    def __init__(self, programs: Mapping[str, FakeAnswer | FakeProgram] | None = None) -> None:
        self.programs: dict[str, FakeAnswer | FakeProgram] = dict(programs or {})
        self.calls: list[FakeCall] = []
        self._lock = threading.Lock()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> CommandResult:
        """The scripted answer, or the error that a real runner would raise."""
        answer = self._answer(FakeCall(tuple(argv), timeout_seconds, env, cwd, stdin))
        if answer.takes_seconds and should_stop is not None and should_stop():
            raise CommandStopped(argv, answer.stdout)
        if answer.takes_seconds > timeout_seconds:
            raise CommandTimeout(argv, timeout_seconds, answer.stdout, answer.stderr)
        return CommandResult(tuple(argv), answer.returncode, answer.stdout, answer.stderr)

    def stream(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        on_line: Callable[[str], None],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> CommandResult:
        """The scripted answer line by line; stdout comes before stderr."""
        answer = self._answer(FakeCall(tuple(argv), timeout_seconds, env, cwd))
        output = answer.stdout + answer.stderr
        for line in output.replace("\r", "\n").split("\n"):
            if line:
                on_line(line)
        if should_stop is not None and should_stop():
            raise CommandStopped(argv, output)
        if answer.takes_seconds > timeout_seconds:
            raise CommandTimeout(argv, timeout_seconds, output)
        return CommandResult(tuple(argv), answer.returncode, output, "")

    def _answer(self, call: FakeCall) -> FakeAnswer:
        with self._lock:
            self.calls.append(call)
        program = self.programs.get(call.argv[0])
        if program is None:
            raise CommandNotFound(call.argv[0])
        return program if isinstance(program, FakeAnswer) else program(call)
