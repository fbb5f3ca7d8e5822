"""A lock on a shared file system that needs no flock and survives crashes.

A lease is a file at an agreed path. Taking it is `link` of a uniquely named file of one's own to that path:
whoever's file has the same inode as the path holds the lease. (A network file system may report a failure for
a link that was made, so the inodes are compared instead of trusting the answer.)

The holder counts up *in its own file*, in place: that reaches the path only as long as both are one file, so a
holder that slept through the theft of its lease can never overwrite the thief's. A lease is stale

- at once, if its holder was a process of this boot of this host, and is gone; or
- when its content stood still for 60 seconds by the observer's own clock. Clocks are never compared.

Whoever removes the path, the holder that gives it back or an observer that breaks it, first renames the holder's own
file to a name of his. That succeeds for one of them only, and until he has removed the path no other lease can be
there: so nobody ever removes a lease that is not the one he has looked at. One who died in between has left the
renamed file; when that has stood still for a while, others rename it in turn.

Between `check()` and what the holder then does there is always a moment, so what a lease protects must still be
harmless if done twice (publishing by rename, say); the lease makes that rare, not impossible.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import uuid
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import Self

from girder_worker_singularity.holder import GONE, holder_in, values_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.holder import Holder

STALE_AFTER_SECONDS = 60.0
REFRESH_SECONDS = 5.0
_LONGEST_STEP_SECONDS = 5.0  # what one look at an unchanged lease counts at most, see LeaseWatch
_POLL_SECONDS = 0.5
_ABANDONED_SECONDS = 10.0  # between the two steps of a removal there are milliseconds
_COUNTER_DIGITS = 12
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LeaseHeld(Exception):
    """Somebody else holds the lease, and the time to wait for it is over."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(path, holder)
        self.path = path
        self.holder = holder

    def __str__(self) -> str:
        return f"{self.path} is held by {self.holder}."


class LeaseLost(Exception):
    """The lease was broken by somebody who saw it stand still: stop what it protected, publish nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"The lease {self.path} was taken over by somebody else."


class HardLinksMissing(OSError):
    """The file system cannot give one file two names, so no lease can be taken on it, ever."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            errno.ENOTSUP,
            "this file system has no hard links (or shows two names of one file as two files), which are needed here",
            str(directory),
        )


class Standing(Enum):
    """What an observer knows about a lease."""

    FREE = "free"
    HELD = "held"
    STALE = "stale"


class Lease:
    """A lease that was taken; give it back with `release`, or use it as a context manager."""

    def __init__(self, path: Path, own_file: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        self._own_file = own_file
        self._counter = 0
        self._lock = threading.Lock()

    @classmethod
    def acquire(
        cls,
        path: Path,
        holder: Holder,
        clock: Clock,
        *,
        wait_seconds: float | None = None,
        should_stop: Callable[[], bool] | None = None,
        unless_it_lives: bool = False,
        on_wait: Callable[[str], None] | None = None,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
    ) -> Lease:
        """The lease, as soon as it is free or stale; LeaseHeld after `wait_seconds` or if `should_stop` says so.

        With `unless_it_lives` also as soon as its holder shows that it lives, so that only one which may be dead is waited for.
        `on_wait` is told once who holds it.
        Raises OSError if the directory cannot be written to, and HardLinksMissing if that would never work there.
        """
        watch = LeaseWatch(path, clock, stale_after_seconds=stale_after_seconds)
        give_up_at = None if wait_seconds is None else clock.monotonic() + wait_seconds
        while True:
            lease = watch.try_acquire(holder)
            if lease is not None:
                return lease
            out_of_time = give_up_at is not None and clock.monotonic() >= give_up_at
            stop = should_stop is not None and should_stop()
            if out_of_time or stop or (unless_it_lives and watch.holder_lives):
                raise LeaseHeld(path, watch.holder_text)
            if on_wait is not None:
                on_wait(watch.holder_text)
                on_wait = None
            clock.sleep(_POLL_SECONDS)

    def refresh(self) -> None:
        """Show that the holder lives; LeaseLost if the lease is no longer this holder's."""
        with self._lock:
            self._counter += 1
            try:
                with self._own_file.open("r+b") as file:
                    file.write(_content(self.holder, self._own_file, self._counter))
            except FileNotFoundError as error:
                raise LeaseLost(self.path) from error
        self.check()

    def check(self) -> None:
        """Return if the lease is still this holder's, else raise LeaseLost; ask just before publishing."""
        try:
            own = self._own_file.stat()
            if not self.path.exists():
                # Missing for a moment while somebody breaks a lease by mistake and puts it back.
                with contextlib.suppress(FileExistsError):
                    os.link(self._own_file, self.path)
        except FileNotFoundError as error:
            raise LeaseLost(self.path) from error
        if not _same_file(self.path, own):
            raise LeaseLost(self.path)

    @contextlib.contextmanager
    def kept_alive(self, every_seconds: float = REFRESH_SECONDS) -> Iterator[None]:
        """Inside the block a thread refreshes the lease; a loss shows at the next `check`."""
        stop = threading.Event()

        def keep_refreshing() -> None:
            while not stop.wait(every_seconds):
                with contextlib.suppress(OSError):  # a hiccup of the file system; the next round tells
                    try:
                        self.refresh()
                    except LeaseLost:
                        return

        thread = threading.Thread(target=keep_refreshing, name=f"lease {self.path.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def release(self) -> None:
        """Give the lease back; one that was lost meanwhile stays with whoever has it."""
        right = _removal_name(self.path, self._own_file)
        with contextlib.suppress(OSError):
            if not _renamed(self._own_file, right):
                return
            if _same_file(self.path, right.stat()):
                self.path.unlink()
            right.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class LeaseWatch:
    """Looks at a lease again and again, and remembers for how long it stood still.

    Each look at an unchanged lease counts at most five seconds: an observer that was itself stopped, or that hung
    in the file system, has not seen the holder stand still meanwhile.
    """

    def __init__(self, path: Path, clock: Clock, *, stale_after_seconds: float = STALE_AFTER_SECONDS) -> None:
        self.path = path
        self._clock = clock
        self._stale_after_seconds = stale_after_seconds
        self._seen: _Seen | None = None
        self._looked_at = 0.0
        self._still_seconds = 0.0
        self._has_moved = False
        self._left: Path | None = None
        self._left_at = 0.0
        self._left_seconds = 0.0

    @property
    def holder_text(self) -> str:
        """Who held it at the last look, in words."""
        holder = holder_in(self._seen.content) if self._seen else None
        return str(holder) if holder else "somebody unknown"

    @property
    def holder(self) -> Holder | None:
        """Who held it at the last look."""
        return holder_in(self._seen.content) if self._seen else None

    @property
    def holder_lives(self) -> bool:
        """Whether the holder has shown that it lives: it counted on meanwhile, or it can be seen from here."""
        return self._has_moved or (self.holder is not None and self.holder.is_of_this_host())

    def look(self) -> Standing:
        """What is known about the lease by now."""
        now = self._clock.monotonic()
        seen = _read(self.path)
        if seen is None:
            self._seen = None
            return Standing.FREE
        if seen != self._seen:
            self._has_moved = self._has_moved or self._seen is not None
            self._seen, self._still_seconds = seen, 0.0
        else:
            self._still_seconds += min(now - self._looked_at, _LONGEST_STEP_SECONDS)
        self._looked_at = now
        holder = holder_in(seen.content)
        if self._still_seconds >= self._stale_after_seconds or (holder is not None and holder.is_gone()):
            return Standing.STALE
        return Standing.HELD

    def try_acquire(self, holder: Holder) -> Lease | None:
        """The lease if it is free, or stale and could be broken; None while it is somebody else's."""
        standing = self.look()
        if standing is Standing.HELD:
            return None
        if standing is Standing.STALE and not self.break_stale():
            return None
        self._seen = None
        return _take(self.path, holder)

    def break_stale(self) -> bool:
        """Remove the lease that the last look called stale; False if it was another one by now, or is not ours to remove."""
        if self._seen is None or _read(self.path) != self._seen:
            return False
        own_file = _own_file(self.path, self._seen.content)
        right = _removal_name(self.path, own_file)
        if own_file is not None and _renamed(own_file, right):
            return self._remove(right, own_file)
        left = self._abandoned(own_file)
        if left is None:
            return False
        if own_file is None or left == self.path:
            return self._remove_strange(right)
        return _renamed(left, right) and self._remove(right, own_file)

    def _remove(self, right: Path, own_file: Path) -> bool:
        """Removes the lease, whose own file has been renamed to `right` by us."""
        there = _read(self.path)
        is_it = there is not None and self._seen is not None and there.inode == self._seen.inode
        if is_it and there != self._seen:
            right.rename(own_file)  # its holder has counted on at the last moment
            return False
        if is_it:
            self.path.unlink(missing_ok=True)
        right.unlink(missing_ok=True)
        return is_it

    def _remove_strange(self, right: Path) -> bool:
        """Removes what is no lease of ours, or has lost all but its name: here a lease may be caught by mistake."""
        if not _renamed(self.path, right):
            return False
        is_it = _read(right) == self._seen
        if not is_it:
            there = right.stat()
            with contextlib.suppress(FileExistsError):
                os.link(right, self.path)
            caught_own = _own_file(self.path, right.read_bytes())
            # Its holder may have given it back meanwhile.
            if caught_own is not None and not caught_own.exists() and _same_file(self.path, there):
                self.path.unlink(missing_ok=True)
        right.unlink(missing_ok=True)
        return is_it

    def _abandoned(self, own_file: Path | None) -> Path | None:
        """What somebody has left who died while he removed the lease; the path itself where nothing at all is left.

        None for as long as he may still be about to go on.
        """
        left = self.path
        if own_file is not None:
            left = min(self.path.parent.glob(_removal_name(self.path, own_file, "*").name), default=self.path)
        now = self._clock.monotonic()
        if left != self._left:
            self._left, self._left_seconds = left, 0.0
        else:
            self._left_seconds += min(now - self._left_at, _LONGEST_STEP_SECONDS)
        self._left_at = now
        return left if self._left_seconds >= _ABANDONED_SECONDS else None


def _removal_name(path: Path, own_file: Path | None, unique: str = "") -> Path:
    """What the own file of a lease is renamed to by whoever removes the lease."""
    lease = "strange" if own_file is None else own_file.name.rpartition("-")[2]
    return path.with_name(f".{path.name}.broken-{lease}-{unique or uuid.uuid4().hex}")


def _renamed(source: Path, target: Path) -> bool:
    """Whether it was there to be renamed. Over NFS that may be reported as gone because it was done."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return target.exists()
    return True


def _take(path: Path, holder: Holder) -> Lease | None:
    own_file = path.with_name(f".{path.name}.holder-{uuid.uuid4().hex}")
    descriptor = os.open(own_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, _content(holder, own_file, 0))
    except OSError:  # a full disk
        own_file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    refused: OSError | None = None
    try:
        os.link(own_file, path)
    except OSError as error:  # the inodes decide
        refused = error
    with contextlib.suppress(FileNotFoundError):
        if _same_file(path, own_file.stat()):
            return Lease(path, own_file, holder)
    there = _read(path)
    is_own = there is not None and _own_file(path, there.content) == own_file
    if (
        is_own
    ):  # two inodes for one file, as sshfs 3.7 has it: waiting for it to become free would be for ever
        path.unlink(missing_ok=True)
    own_file.unlink(missing_ok=True)
    if is_own or (refused is not None and refused.errno in _NO_LINKS and there is None):
        raise HardLinksMissing(path.parent)
    return None


def _content(holder: Holder, own_file: Path, counter: int) -> bytes:
    # Always of the same length for one lease, so that it can be written over in place.
    values: dict[str, Any] = {
        **asdict(holder),
        "file": own_file.name,
        "counter": f"{counter:0{_COUNTER_DIGITS}d}",
    }
    return (json.dumps(values) + "\n").encode()


class _Seen(NamedTuple):
    inode: int
    content: bytes
    #: Some network mounts go on showing the content that they once read, but not for ever the time (seen: GlusterFS
    #: 10 without --auto-invalidation).
    changed_at_ns: int


def _read(path: Path) -> _Seen | None:
    try:
        with path.open("rb") as file:
            content = file.read(64 * 1024)
            status = os.fstat(file.fileno())
            return _Seen(status.st_ino, content, status.st_mtime_ns)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _own_file(path: Path, content: bytes) -> Path | None:
    name = values_in(content).get("file")
    if isinstance(name, str) and name.startswith(f".{path.name}.holder-") and "/" not in name:
        return path.with_name(name)
    return None


def _same_file(path: Path, own: os.stat_result) -> bool:
    try:
        # Opened, not only asked for: a network mount may answer `stat` from memory, but looks again on `open`.
        with path.open("rb") as file:
            there = os.fstat(file.fileno())
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)
