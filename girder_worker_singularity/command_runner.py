"""Running programs: the only module of both packages that starts processes.

There is never a shell, always a time limit (but for what a person watches, `run_in_foreground`), and what is kept of
the output is bounded. What happens to a program that runs is in `supervision.py`. Who runs a program elsewhere (over
SSH, as another user) wraps a CommandRunner and changes only the argv.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from girder_worker_singularity.clock import Clock, SystemClock
from girder_worker_singularity.program_output import KeptOutput, Lines
from girder_worker_singularity.supervision import (
    CHUNK_BYTES,
    LINGER_SECONDS,
    StatusLost,
    Supervision,
    kill_session,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

OUTPUT_LIMIT_BYTES = 1024 * 1024
"""How much of the beginning, and of the end, of each output is kept."""

_PIPE_BYTES = 1024 * 1024
#: Of these starting a program may fail now and work in a moment.
_PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class CommandResult:
    """How a program ended and what it printed; a non-zero `returncode` is a result, not an error."""

    argv: tuple[str, ...]
    returncode: int
    """The exit status, or the negative number of the signal that ended the program."""
    stdout: str
    stderr: str
    truncated: bool = False
    """Whether the middle of an output was left out: such a listing must not be read as complete."""


class CommandError(Exception):
    """A program gave no result."""


class CommandNotFound(CommandError):
    """There is no such program here, or it cannot be executed."""

    def __init__(self, program: str) -> None:
        super().__init__(program)
        self.program = program

    def __str__(self) -> str:
        return f"The program {self.program!r} is not on the PATH, or is not executable."


class CommandNotStarted(CommandError):
    """No program can be started at the moment: there are as many processes or open files as there may be, or no memory."""


class CommandTimeout(CommandError):
    """The program was killed because its time was up."""

    def __init__(
        self, argv: Sequence[str], timeout_seconds: float, stdout: str = "", stderr: str = ""
    ) -> None:
        super().__init__(tuple(argv), timeout_seconds, stdout, stderr)
        self.argv = tuple(argv)
        self.timeout_seconds = timeout_seconds
        self.stdout = stdout
        self.stderr = stderr

    def __str__(self) -> str:
        return f"{self.argv[0]!r} did not finish within {self.timeout_seconds:g} s and was killed."


class CommandStopped(CommandError):
    """The program was killed because the caller asked for it."""

    def __init__(self, argv: Sequence[str], stdout: str = "") -> None:
        super().__init__(tuple(argv), stdout)
        self.argv = tuple(argv)
        self.stdout = stdout

    def __str__(self) -> str:
        return f"{self.argv[0]!r} was stopped."


class CommandRunner(Protocol):
    """A place where programs run."""

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
        """How the program ended, once it has.

        `env=None` inherits this process's environment, `stdin=None` is empty. Raises CommandNotFound, or
        CommandTimeout after the whole process group was killed, or CommandStopped soon after `should_stop` turned
        true. An exception of `should_stop` kills the program and goes on to the caller.
        """

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
        """As `run`, handing each line of output over as it comes; stderr is mixed into stdout.

        A carriage return ends a line too (progress bars); blank lines are not handed over. An exception of `on_line`
        kills the program and goes on to the caller.
        """


class LocalCommandRunner:
    """Runs programs on this host as this user."""

    def __init__(self, *, clock: Clock | None = None, output_limit_bytes: int = OUTPUT_LIMIT_BYTES) -> None:
        self._clock = clock or SystemClock()
        self._output_limit_bytes = output_limit_bytes

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
        """How the program ended, once it has; see CommandRunner."""
        stdout, stderr = KeptOutput(self._output_limit_bytes), KeptOutput(self._output_limit_bytes)
        with self._started(argv, env=env, cwd=cwd, with_stdin=stdin is not None) as process:
            watched = Supervision(process, self._clock, timeout_seconds, should_stop=should_stop)
            returncode = watched.watch(
                {process.stdout: stdout.add, process.stderr: stderr.add},
                stdin=stdin.encode() if stdin is not None else b"",
            )
        if watched.stopped:
            raise CommandStopped(argv, stdout.text())
        if returncode is None:
            raise CommandTimeout(argv, timeout_seconds, stdout.text(), stderr.text())
        return CommandResult(
            argv=tuple(argv),
            returncode=returncode,
            stdout=stdout.text(),
            stderr=stderr.text(),
            truncated=stdout.truncated or stderr.truncated,
        )

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
        """As `run`, handing each line over as it comes; see CommandRunner."""
        output, lines = KeptOutput(self._output_limit_bytes), Lines(on_line)

        def take(chunk: bytes) -> None:
            output.add(chunk)
            lines.add(chunk)

        with self._started(argv, env=env, cwd=cwd, with_stdin=False, merge=True) as process:
            watched = Supervision(process, self._clock, timeout_seconds, should_stop=should_stop)
            returncode = watched.watch({process.stdout: take}, stdin=b"")
        lines.finish()
        if watched.stopped:
            raise CommandStopped(argv, output.text())
        if returncode is None:
            raise CommandTimeout(argv, timeout_seconds, output.text())
        return CommandResult(tuple(argv), returncode, output.text(), "", truncated=output.truncated)

    @contextlib.contextmanager
    def _started(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: Path | None,
        with_stdin: bool,
        merge: bool = False,
    ) -> Iterator[subprocess.Popen[bytes]]:
        if cwd is not None and not cwd.is_dir():
            raise CommandError(f"Cannot run {argv[0]!r} in {str(cwd)!r}: there is no such directory.")
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if with_stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merge else subprocess.PIPE,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
                bufsize=0,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise CommandNotFound(argv[0]) from error
        except OSError as error:
            passes = error.errno in _PASSING
            kind = CommandNotStarted if passes else CommandError
            raise kind(f"Cannot run {argv[0]!r}: {error.strerror}.") from error
        try:
            yield process
        except BaseException as error:
            kill_session(process)
            if isinstance(error, StatusLost):
                raise CommandError(str(error)) from error
            raise
        finally:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            # Not forever: a program in an uninterruptible wait (a dead network mount) outlives even KILL.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LINGER_SECONDS)


class Conversation:
    """A program that answers on its output what it is told on its input; it ends when its input is closed.

    Its output is what it says, not kept; of its errors (`last_words`) the end is. Used by one thread at a time.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Starts it; raises CommandNotFound."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=dict(env) if env is not None else None,
                cwd="/",
                start_new_session=True,
                bufsize=0,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            self._errors.close()
            raise CommandNotFound(argv[0]) from error
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - pipes
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._stdin, self._stdout):
            os.set_blocking(descriptor, False)

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Tells it something; raises TimeoutError when it takes nothing for so long, BrokenPipeError when it has ended."""
        view = memoryview(data)
        while view:
            _await(self._stdin, select.POLLOUT, timeout_seconds)
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self._stdin, view[:_PIPE_BYTES]) :]

    def receive(self, count: int, *, timeout_seconds: float) -> bytes:
        """Exactly so many bytes of what it says; raises TimeoutError when none come for so long, EOFError at its end."""
        data = bytearray()
        while len(data) < count:
            _await(self._stdout, select.POLLIN, timeout_seconds)
            with contextlib.suppress(BlockingIOError):
                piece = os.read(self._stdout, min(count - len(data), _PIPE_BYTES))
                if not piece:
                    raise EOFError
                data += piece
        return bytes(data)

    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - CHUNK_BYTES))
        return self._errors.read().decode("utf-8", errors="replace").strip()

    def close(self) -> None:
        """Ends it: by the end of its input, and if that does not do and it may be killed, by that."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=LINGER_SECONDS)
        except subprocess.TimeoutExpired:
            kill_session(self._process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=LINGER_SECONDS)
        self._errors.close()


def run_in_foreground(argv: Sequence[str]) -> int:
    """How a program ended that a person waits for: its exit status, or the negative number of its signal.

    It writes straight to this process's output, reads nothing and has no time limit; interrupt, hangup and termination
    of this process go on to it. Only for a main thread. Raises CommandNotFound.
    """
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        asked.append(number)
        for process in started:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        # A session of its own: an interrupt from the keyboard reaches it through `pass_on`, and only once.
        started.append(subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, start_new_session=True))
        for number in asked:
            started[0].send_signal(number)
        return started[0].wait()
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise CommandNotFound(argv[0]) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(descriptor: int, event: int, timeout_seconds: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(timeout_seconds * 1000):
        msg = f"The program did not answer within {timeout_seconds:g} s."
        raise TimeoutError(errno.ETIMEDOUT, msg)
