"""Whose something on a shared file system is: a process, and whether it still lives."""

from __future__ import annotations

import errno
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: What a file that is not there (any more) is reported with; ESTALE: removed while a network mount had it open.
GONE = (errno.ENOENT, errno.ESTALE)
_LONGEST_NOTE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: enough to see on the same host whether that process still lives."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    process_start: int
    name: str = ""

    @classmethod
    def this_process(cls, name: str = "") -> Holder:
        """The process that asks; `name` is for people who read the lease."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            pid=pid,
            process_start=_process_start(pid) or 0,
            name=name,
        )

    def is_gone(self) -> bool:
        """Whether it certainly runs no more: known only of processes of this boot of this host."""
        return self.is_of_this_host() and _process_start(self.pid) != self.process_start

    def is_of_this_host(self) -> bool:
        """Whether this process can see that one: same boot of the same host, and the same namespace of processes."""
        if not self.boot_id or self.boot_id != _boot_id() or self.host != socket.gethostname():
            return False
        return bool(self.pid_namespace) and self.pid_namespace == _pid_namespace()

    def __str__(self) -> str:
        return f"{self.name or 'process'} {self.pid} on {self.host}"


def write_holder(path: Path, holder: Holder) -> None:
    """Note in a file of its own whose something is."""
    path.write_text(json.dumps(asdict(holder)) + "\n", encoding="utf-8")


def read_holder(path: Path) -> Holder | None:
    """Whose it is, or None if there is no such note."""
    try:
        with path.open("rb") as file:
            return holder_in(file.read(_LONGEST_NOTE_BYTES))
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def holder_in(content: bytes) -> Holder | None:
    """Whom a note or a lease with this content names; None if it names nobody."""
    values = values_in(content)
    try:
        return Holder(
            host=str(values["host"]),
            boot_id=str(values["boot_id"]),
            pid_namespace=str(values["pid_namespace"]),
            pid=int(values["pid"]),
            process_start=int(values["process_start"]),
            name=str(values.get("name", "")),
        )
    except (KeyError, ValueError, TypeError):
        return None


def values_in(content: bytes) -> dict[str, Any]:
    """All that such a content says; empty if it is none."""
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _boot_id() -> str:
    return _first_line(Path("/proc/sys/kernel/random/boot_id"))


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _process_start(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if there is none (a zombie is none either)."""
    stat = _first_line(Path(f"/proc/{pid}/stat"))
    fields = stat.rpartition(")")[2].split()  # the name before `)` may hold anything
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
