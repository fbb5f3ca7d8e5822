"""Files on their way between two Unix users: as a sequence of entries, each a directory, a file with its pieces, or a link.

Who receives them believes nothing: a path that leads out, or a file where one is already, is refused, and links are made
last, so that nothing is ever written through one.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.cluster.frames import PIECE_BYTES, FrameInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: One entry: its head, and bytes where it is a piece.
Entry = tuple[dict[str, Any], bytes]
END: Entry = ({"entry": "end"}, b"")


def staged_entries(place: Path, names: Sequence[str]) -> Iterator[Entry]:
    """What lies below these directories of `place`. Links are left out: nothing that Girder sends has any."""
    for name in names:
        if not (place / name).is_dir():
            continue
        for directory, _, files in os.walk(place / name):
            inside = os.path.relpath(directory, place)
            yield {"entry": "directory", "path": inside}, b""
            for file in files:
                if stat.S_ISREG((Path(directory) / file).lstat().st_mode):
                    yield from _file(Path(directory) / file, f"{inside}/{file}", Path(directory))


def left_entries(volume: Path, *, inputs: str, begun_ns: int) -> Iterator[Entry]:
    """What a job left in its volume, made readable, without the inputs that are as they were before `begun_ns`.

    A link to an input becomes that file; one that leads out of the volume is left out.
    """
    root = Path(os.path.realpath(volume))
    if not volume.is_dir():
        yield {"entry": "directory", "path": volume.name}, b""
        return
    pending = [volume]
    while pending:
        directory = pending.pop()
        mode = stat.S_IMODE(directory.lstat().st_mode)
        if (
            mode & stat.S_IRWXU != stat.S_IRWXU
        ):  # one of another owner, such as a fakeroot leaves, may be readable
            directory.chmod(mode | stat.S_IRWXU)
        yield {"entry": "directory", "path": _below(directory, volume)}, b""
        with os.scandir(directory) as found:
            entries = list(found)
        for entry in entries:
            path = Path(entry.path)
            inside = _below(path, volume)
            if entry.is_symlink():
                yield from _link(path, inside, root, inputs)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_file(follow_symlinks=False):
                status = path.lstat()
                is_input = path.relative_to(volume).parts[0] == inputs
                if is_input and status.st_mtime_ns <= begun_ns:
                    continue
                if not status.st_mode & stat.S_IRUSR:
                    path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
                yield from _file(path, inside, root)


def open_inside(path: Path, root: Path) -> int:
    """A descriptor of the file, if it is a plain one below `root` (without links in it), whatever led there.

    Raises PermissionError otherwise. What was opened is looked at, not the path, which may change meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        real = Path(f"/proc/self/fd/{descriptor}").readlink()
        if real.is_relative_to(root) and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise PermissionError(
        errno.EPERM, "It is no plain file of the directory that it seems to be in", str(path)
    )


class TreeReceiver:
    """Makes what comes below a directory that nobody else can write to."""

    def __init__(self, place: Path, names: Sequence[str]) -> None:
        self._place = place
        self._names = names
        self._links: list[tuple[Path, str]] = []
        self._open: int | None = None
        self._times = 0

    def take(self, head: dict[str, Any], data: bytes) -> bool:
        """Takes the next entry; False when it was the last. Raises FrameInvalid, OSError."""
        kind = head.get("entry")
        if kind == "piece":
            if self._open is None:
                raise FrameInvalid("A piece came that belongs to no file.")
            _write_all(self._open, data)
            return True
        self._finish_file()
        if kind == "end":
            for path, target in self._links:
                path.symlink_to(target)
            return False
        path = self._path(head.get("path"))
        if kind == "directory":
            path.mkdir(mode=0o700, exist_ok=True)
        elif kind == "file":
            self._open = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            self._times = int(head.get("mtime_ns", 0))
        elif kind == "link":
            target = str(head.get("target"))
            if PurePosixPath(target).is_absolute() or "\0" in target:
                raise FrameInvalid(f"A link to {target!r} came.")
            self._links.append((path, target))
        else:
            raise FrameInvalid(f"An entry {kind!r} came, which is not known.")
        return True

    def close(self) -> None:
        """Ends the file that is being written, as it is."""
        if self._open is not None:
            os.close(self._open)
            self._open = None

    def _finish_file(self) -> None:
        if self._open is not None:
            os.utime(self._open, ns=(self._times, self._times))
            self.close()

    def _path(self, given: object) -> Path:
        parts = PurePosixPath(str(given)).parts
        if not parts or parts[0] not in self._names or ".." in parts or "\0" in str(given):
            raise FrameInvalid(f"The path {given!r} came, which may not be.")
        return self._place.joinpath(*parts)


def _file(path: Path, inside: str, root: Path) -> Iterator[Entry]:
    descriptor = open_inside(path, Path(os.path.realpath(root)))
    with os.fdopen(descriptor, "rb") as handle:
        yield {"entry": "file", "path": inside, "mtime_ns": os.fstat(descriptor).st_mtime_ns}, b""
        while piece := handle.read(PIECE_BYTES):
            yield {"entry": "piece"}, piece


def _link(path: Path, inside: str, root: Path, inputs: str) -> Iterator[Entry]:
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(root) or real == root:
        return
    if real.is_relative_to(root / inputs) and real.is_file():
        yield from _file(path, inside, root)
    else:
        beside = os.path.realpath(path.parent)
        yield {"entry": "link", "path": inside, "target": os.path.relpath(real, beside)}, b""


def _below(path: Path, volume: Path) -> str:
    return str(path.relative_to(volume.parent))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
