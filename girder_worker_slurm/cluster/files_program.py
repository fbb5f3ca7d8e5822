"""`girder-slurm-files`: the run directories and the spool of one Unix user, for a worker that is another one.

The worker starts it as that user and tells it on its standard input what to do; nothing of a job is in its arguments.
It ends when its input does. It touches nothing outside of the one directory that it is given, but looks whether files
can be read (`can_read`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from girder_worker_slurm.cluster.frames import PIECE_BYTES, PROTOCOL, FrameInvalid, frame, read_frame
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.cluster.tree_transfer import END, TreeReceiver, left_entries, open_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from girder_worker_slurm.cluster.run_files import JobEvent

#: What a token, or the name of a file of a run directory or of the spool, looks like: no way out of its directory.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}\Z")
#: The directories of a run directory that the worker fills.
STAGED = ("volume", "volumes")
#: The directory of the inputs in the volume.
INPUTS = "inputs"
_USAGE = "usage: girder-slurm-files DIRECTORY\n\nServes the worker girder-slurm; see docs/howto/users.md.\n"

#: The year 2262, the last that file times can say.
_FAR_AHEAD_NS = 2**63 - 1

Answer = tuple[Any, bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves one directory until the input ends; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1 or given[0].startswith("-"):
        sys.stdout.write(_USAGE)
        return 0 if given in (["--help"], ["-h"]) else 2
    os.umask(0o077)
    out = sys.stdout.buffer
    # What a library prints must not get between the frames.
    sys.stdout = sys.stderr
    try:
        enter(Path(given[0]))
    except OSError as error:
        out.write(frame(_error(error)))
        out.flush()
        return 1
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        FilesServer().serve(sys.stdin.buffer, out)
    return 0


def enter(root: Path) -> None:
    """Makes the directory if it is missing, and goes into it; raises OSError unless it is this user's alone.

    From here on all paths are relative: whatever is put in its place, this one is meant.
    """
    if not root.is_absolute():
        raise OSError(errno.EINVAL, "It is no absolute path", str(root))
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"It belongs to another user ({status.st_uid})", str(root))
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
        os.fchdir(descriptor)
    finally:
        os.close(descriptor)


class FilesServer:
    """Answers for the directory that is the current one."""

    def __init__(self) -> None:
        self._runs = RunDirectories(Path())
        self._root = Path.cwd()
        self._orders: dict[str, Callable[[dict[str, Any], bytes], Answer]] = {
            "prepare": self._prepare,
            "create": self._create,
            "write": self._write,
            "read": self._read,
            "size": self._size,
            "claim": lambda head, _: (self._runs.claim(_name(head, "token"), str(head["why"])), b""),
            "claimed": self._claimed,
            "spool": lambda head, _: (self._runs.spooled(anew=head.get("anew") is True), b""),
            "events": self._events,
            "kept_events": lambda head, _: (_events(self._runs.kept_events(_name(head, "token"))), b""),
            "keep": self._keep,
            "remove_data": self._remove_data,
            "remove": self._remove,
            "can_read": lambda head, _: (self._runs.can_read(Path(str(head["path"]))), b""),
            "can_enter": lambda head, _: (os.access(str(head["path"]), os.R_OK | os.X_OK), b""),
        }

    def serve(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        """Answers until the input ends (EOFError)."""

        def read(count: int) -> bytes:
            data = incoming.read(count)
            if len(data) < count:
                raise EOFError
            return data

        def send(head: dict[str, Any], data: bytes = b"") -> None:
            outgoing.write(frame(head, data))
            outgoing.flush()

        send({"program": "girder-slurm-files", "protocol": PROTOCOL, "uid": os.geteuid()})
        while True:
            head, data = read_frame(read)
            try:
                order = str(head.get("do"))
                if order == "put":
                    self._put(_name(head, "token"), read)
                    send({"value": None})
                elif order == "collect":
                    self._collect(_name(head, "token"), send)
                elif order in self._orders:
                    value, answer = self._orders[order](head, data)
                    send({"value": value}, answer)
                else:
                    raise FrameInvalid(f"The order {order!r} is not known.")
            except BrokenPipeError:
                raise
            except OSError as error:
                send(_error(error))
                if head.get("do") == "put":
                    return  # the rest of what comes is not for us
            except (KeyError, TypeError, ValueError) as error:
                send(_error(FrameInvalid(f"The order makes no sense: {error!r}")))

    def _prepare(self, head: dict[str, Any], data: bytes) -> Answer:
        del head, data
        self._runs.prepare()
        return None, b""

    def _create(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        self._runs.create(_name(head, "token"))
        return None, b""

    def _write(self, head: dict[str, Any], data: bytes) -> Answer:
        self._runs.write(_name(head, "token"), _name(head, "name"), data, mode=int(head["mode"]) & 0o700)
        return None, b""

    def _read(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        descriptor = self._open(head)
        with os.fdopen(descriptor, "rb") as handle:
            handle.seek(max(0, int(head.get("start", 0))))
            return None, handle.read(min(PIECE_BYTES, int(head.get("length", PIECE_BYTES))))

    def _size(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        descriptor = self._open(head)
        try:
            return os.fstat(descriptor).st_size, b""
        finally:
            os.close(descriptor)

    def _open(self, head: dict[str, Any]) -> int:
        path = self._runs.path(_name(head, "token"))
        return open_inside(path / _name(head, "name"), Path(os.path.realpath(path)))

    def _claimed(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        token = _name(head, "token")
        return [self._runs.claimed_by(token), self._runs.claimant(token)], b""

    def _events(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        wanted = set(head["tokens"])
        return _events(self._runs.events(wanted.__contains__)), b""

    def _keep(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        self._runs.keep_file(_name(head, "name"), _name(head, "token"))
        return None, b""

    def _remove_data(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        self._runs.remove_data(_name(head, "token"))
        return None, b""

    def _remove(self, head: dict[str, Any], data: bytes) -> Answer:
        del data
        self._runs.remove(_name(head, "token"))
        return None, b""

    def _put(self, token: str, read: Callable[[int], bytes]) -> None:
        receiver = TreeReceiver(self._runs.path(token), STAGED)
        try:
            while receiver.take(*read_frame(read)):
                pass
        finally:
            receiver.close()

    def _collect(self, token: str, send: Callable[[dict[str, Any], bytes], None]) -> None:
        run = self._runs.path(token)
        script = run / "job.slurm"
        # Without a script nothing can have been written since.
        begun_ns = script.lstat().st_mtime_ns if script.exists() else _FAR_AHEAD_NS
        send({"entry": "begun", "mtime_ns": begun_ns}, b"")
        for head, data in left_entries(run / "volume", inputs=INPUTS, begun_ns=begun_ns):
            send(head, data)
        send(*END)


def _name(head: dict[str, Any], key: str) -> str:
    name = head[key]
    if not isinstance(name, str) or not _NAME.match(name):
        raise FrameInvalid(f"{name!r} may not be a {key}.")
    return name


def _events(found: Sequence[JobEvent]) -> list[dict[str, Any]]:
    return [{"name": event.path.name, "fields": dict(event.fields)} for event in found]


def _error(error: OSError) -> dict[str, Any]:
    what = error.strerror or str(error)
    return {"error": error.errno or errno.EIO, "what": what, "path": str(error.filename or "")}


if __name__ == "__main__":
    sys.exit(main())
