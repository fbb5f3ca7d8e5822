"""What happens to a program while it runs: it is fed, its output is taken, and it is ended in time.

It is started elsewhere, by `command_runner.py`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_singularity.clock import Clock

LINGER_SECONDS = 1.0
"""How long output is awaited after the program's end, see `Supervision.watch`."""
CHUNK_BYTES = 64 * 1024

_GRACE_SECONDS = 5.0  # between TERM and KILL
_TICK_SECONDS = 0.2


class Process(Protocol):
    """A program that leads a session of its own; a `Popen` is one."""

    @property
    def args(self) -> Any:
        """Its command line."""

    @property
    def pid(self) -> int:
        """Its number, and that of its group and session."""

    @property
    def returncode(self) -> int | None:
        """None until somebody has waited for it."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe to its standard input."""


class StatusLost(Exception):
    """A program has ended, and nobody can tell how any more."""


class Supervision:
    """One running program: feeds it, drains it, and ends it in time."""

    def __init__(
        self,
        process: Process,
        clock: Clock,
        timeout_seconds: float,
        *,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._process = process
        self._clock = clock
        self._deadline = clock.monotonic() + timeout_seconds
        self._should_stop = should_stop
        self.stopped = False

    def watch(self, sinks: Mapping[object, Callable[[bytes], None]], *, stdin: bytes) -> int | None:
        """The program's return code, or None if it had to be killed."""
        with selectors.DefaultSelector() as selector:
            for pipe, sink in sinks.items():
                self._register(selector, pipe, selectors.EVENT_READ, sink)
            pending = memoryview(stdin)
            if self._process.stdin is not None:
                self._register(selector, self._process.stdin, selectors.EVENT_WRITE, None)
            exit_watch = _open_pidfd(self._process.pid)
            if exit_watch is not None:
                selector.register(exit_watch, selectors.EVENT_READ)
            try:
                return self._loop(selector, pending, exit_watch)
            finally:
                if exit_watch is not None:
                    os.close(exit_watch)

    @staticmethod
    def _register(
        selector: selectors.BaseSelector, pipe: object, events: int, sink: Callable[[bytes], None] | None
    ) -> None:
        descriptor = pipe.fileno()  # type: ignore[attr-defined]  # every pipe of a Popen has one
        os.set_blocking(descriptor, False)
        selector.register(descriptor, events, sink)

    def _loop(
        self, selector: selectors.BaseSelector, pending: memoryview, exit_watch: int | None
    ) -> int | None:
        kill_at: float | None = None
        while True:
            returncode = _exit_status(self._process)
            if returncode is not None:
                if kill_at is not None:
                    kill_session(self._process)
                self._drain(selector, exit_watch)
                return None if kill_at is not None else returncode
            now = self._clock.monotonic()
            if kill_at is None and self._time_is_up(now):
                _kill_group(self._process, signal.SIGTERM)
                kill_at = now + _GRACE_SECONDS
            elif kill_at is not None and now >= kill_at:
                kill_session(self._process)
                if now >= kill_at + _GRACE_SECONDS:
                    return None
            wait_seconds = _TICK_SECONDS if kill_at is not None else min(_TICK_SECONDS, self._deadline - now)
            pending = self._exchange(selector, pending, max(0.0, wait_seconds))

    def _time_is_up(self, now: float) -> bool:
        if self._should_stop is not None and self._should_stop():
            self.stopped = True
        return self.stopped or now >= self._deadline

    def _exchange(
        self, selector: selectors.BaseSelector, pending: memoryview, wait_seconds: float
    ) -> memoryview:
        if not selector.get_map():  # every pipe was closed early and the kernel has no pidfd
            self._clock.sleep(min(wait_seconds, 0.02))
            return pending
        for key, events in selector.select(wait_seconds):
            if events & selectors.EVENT_WRITE:
                pending = self._feed(selector, key.fd, pending)
            elif key.data is not None:
                _read(selector, key.fd, key.data)
        return pending

    def _feed(self, selector: selectors.BaseSelector, descriptor: int, pending: memoryview) -> memoryview:
        try:
            pending = pending[os.write(descriptor, pending[:CHUNK_BYTES]) :] if pending else pending
        except BlockingIOError:
            return pending
        except BrokenPipeError:  # the program does not want to read it all
            pending = pending[:0]
        if not pending and self._process.stdin is not None:
            selector.unregister(descriptor)
            self._process.stdin.close()
        return pending

    def _drain(self, selector: selectors.BaseSelector, exit_watch: int | None) -> None:
        # A background child (an SSH control master, say) may hold the pipes open for hours: after the
        # program's own end its output is awaited only for a moment.
        if exit_watch is not None:
            selector.unregister(exit_watch)
        for key in list(selector.get_map().values()):
            if key.events & selectors.EVENT_WRITE:
                selector.unregister(key.fd)
        until = self._clock.monotonic() + LINGER_SECONDS
        while selector.get_map() and self._clock.monotonic() < until:
            for key, _events in selector.select(0.05):
                _read(selector, key.fd, key.data)


def _read(selector: selectors.BaseSelector, descriptor: int, sink: Callable[[bytes], None]) -> None:
    try:
        chunk = os.read(descriptor, CHUNK_BYTES)
    except BlockingIOError:
        return
    if chunk:
        sink(chunk)
    else:
        selector.unregister(descriptor)


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # kernels before 5.3: the exit is seen at the next tick
        return None


def _exit_status(process: Process) -> int | None:
    """The return code once the program has ended; it is not reaped, so its process group is still ours."""
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError as error:
        # Somebody else waited for it (SIGCHLD ignored, waitpid(-1)); Popen would report success here.
        raise StatusLost(f"The exit status of {process.args!r} was lost to another waiter.") from error
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _kill_group(process: Process, number: signal.Signals) -> None:
    if process.returncode is None:  # reaped means that the number may belong to somebody else
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def kill_session(process: Process) -> None:
    """Kills the program, and what it started in process groups of their own.

    Apptainer does so with squashfuse, which otherwise outlives it and keeps the SIF open (seen: 1.4.5).
    """
    if process.returncode is not None:
        return
    _kill_group(process, signal.SIGKILL)
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if os.getsid(int(name)) == process.pid:
                    os.kill(int(name), signal.SIGKILL)
