"""Supervises long-running processes by pid and start time, and finds what a stack left behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import Identity
from .errors import DevstackError
from .files import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .layout import Layout

# In the environment of every service and inherited by its children. Not DEVSTACK_DIR: callers have that too.
MARKER = "DEVSTACK_SERVICE_OF"
_PROC = Path("/proc")
_MOST_FILES = 65536


@dataclass(frozen=True)
class ProcessSpec:
    """How to start one long-running foreground program."""

    name: str
    argv: Sequence[object]  # words and paths; each is given to the program as str()
    account: str
    environment: Mapping[str, str]
    cwd: Path = Path("/")


@dataclass(frozen=True)
class Running:
    """A process that we started and that still is the same one."""

    pid: int
    log_offset: int


class Supervisor:
    """Starts processes, remembers them on disk, and knows which of them still live."""

    def __init__(self, layout: Layout, log_group: str) -> None:
        self._layout = layout
        self._log_group = log_group
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def log_of(self, name: str) -> Path:
        """The file that takes a process's output."""
        return self._layout.log / f"{name}.log"

    def spawn(self, spec: ProcessSpec) -> Running:
        """Start the process in a session of its own and remember it."""
        log = self.log_of(spec.name)
        if not log.exists():
            write_file(log, "", mode=0o640, group=self._log_group)
        offset = log.stat().st_size
        identity = Identity(spec.account)
        with log.open("ab") as stream:
            stream.write(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            stream.flush()
            try:
                child = subprocess.Popen(
                    [str(word) for word in spec.argv],
                    env={**spec.environment, MARKER: str(self._layout.base)},
                    cwd=spec.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=0o022,
                    user=identity.uid if not identity.is_ours else None,
                    group=identity.gid if not identity.is_ours else None,
                    extra_groups=identity.groups if not identity.is_ours else None,
                )
            except OSError as error:
                raise DevstackError(f"{spec.name}: cannot start {spec.argv[0]}: {error.strerror}") from error
        self._children[child.pid] = child
        record = {"pid": child.pid, "ticks": start_ticks(child.pid), "boot": _boot(), "log_offset": offset}
        write_file(self._record(spec.name), json.dumps(record) + "\n", mode=0o644)
        return Running(child.pid, offset)

    def running(self, name: str) -> Running | None:
        """The live process of that name, or None when it ended or its pid now belongs to another program."""
        try:
            record = json.loads(self._record(name).read_text(encoding="ascii"))
            pid, ticks, boot = int(record["pid"]), record["ticks"], record["boot"]
        except (OSError, ValueError, KeyError):
            return None
        child = self._children.get(pid)
        if child is not None:
            child.poll()
        if ticks is None or boot != _boot() or start_ticks(pid) != ticks:
            return None
        return Running(pid, int(record.get("log_offset", 0)))

    def log_since_start(self, name: str) -> str:
        """What the running process has printed so far."""
        running = self.running(name)
        log = self.log_of(name)
        if running is None or not log.exists():
            return ""
        with log.open("rb") as stream:
            stream.seek(running.log_offset)
            return stream.read(1_000_000).decode(errors="replace")

    def last_log_lines(self, name: str, *, lines: int = 2) -> str:
        """The end of the log, in one line, for an error message."""
        try:
            text = self.log_of(name).read_bytes()[-4000:].decode(errors="replace")
        except OSError:
            return "(no log)"
        kept = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(kept[-lines:])[-400:]

    def stop(self, name: str, *, grace_seconds: float, kill: bool = False) -> None:
        """End the process and its group: SIGTERM, then SIGKILL after the grace (`kill`: at once)."""
        running = self.running(name)
        if running is not None:
            deadline = time.monotonic() + grace_seconds
            _signal(running.pid, signal.SIGKILL if kill else signal.SIGTERM)
            while self.running(name) is not None:
                if time.monotonic() > deadline:
                    _signal(running.pid, signal.SIGKILL)
                    deadline = time.monotonic() + 5
                time.sleep(0.02)
            for pid in _group_members(running.pid):
                _signal(pid, signal.SIGKILL)
        self._record(name).unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self._layout.run / f"{name}.json"


def raise_file_limit() -> None:
    """Let this process and its children open as many files as the machine allows, up to a sane number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is no such live process."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def wait_until(
    condition: Callable[[], bool], *, timeout_seconds: float, interval_seconds: float = 0.1
) -> bool:
    """Whether the condition became true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_seconds)
    return True


def leftovers(layout: Layout, accounts: Iterable[int]) -> dict[int, str]:
    """Pids and command lines of live processes that belong to the stack below `layout`.

    A process belongs to it when (1) a service started it, seen by the marker in its environment, or it
    descends from such a process, (2) it is a job of this cluster, seen by its SLURM_CONF, (3) it runs a
    program that lies below the base directory, or (4) it runs as one of `accounts` (uids) and its command
    line, working directory or standard streams lie there.
    The calling process and its ancestors are never in the answer.
    """
    base = str(layout.base)
    marker = f"{MARKER}={base}".encode()
    slurm_conf = f"SLURM_CONF={layout.slurm_conf}".encode()
    mention = re.compile(re.escape(base.encode()) + rb"(?![\w.-])")  # /a/b is not mentioned by /a/bc
    uids = set(accounts)
    spared = _ancestors(os.getpid())
    parents: dict[int, int] = {}
    found: set[int] = set()
    for pid in _pids():
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX":
            continue
        parents[pid] = int(fields[1])
        words = _words(pid, "cmdline")
        variables = _words(pid, "environ")
        is_job = slurm_conf in variables and any(word.startswith(b"SLURM_JOB_ID=") for word in variables)
        program_is_ours = _lies_below(_link(pid, "exe"), base) or any(
            _lies_below(word.decode(errors="replace"), base) for word in words[:1]
        )
        names_base = _uid(pid) in uids and (
            any(mention.search(word) for word in words)
            or any(_lies_below(path, base) for path in _open_places(pid))
        )
        if marker in variables or is_job or program_is_ours or names_base:
            found.add(pid)
    for pid, parent in parents.items():
        ancestor = parent
        while ancestor in parents and ancestor not in found:
            ancestor = parents[ancestor]
        if ancestor in found and ancestor not in spared:
            found.add(pid)
    return {pid: _command_line(pid) for pid in sorted(found - spared)}


def identities(pids: Iterable[int]) -> dict[int, int | None]:
    """When each of the processes started, which tells it from a later one of the same pid."""
    return {pid: start_ticks(pid) for pid in pids}


def kill_leftovers(
    layout: Layout, accounts: Iterable[int], known: Mapping[int, int | None]
) -> dict[int, str]:
    """Kill every process of the stack, and the `known` ones even if nothing ties them to it any more.

    The answer is what was still there when we gave up: best nothing.
    """
    uids = list(accounts)

    def find() -> dict[int, str]:
        same = [pid for pid, ticks in known.items() if ticks is not None and start_ticks(pid) == ticks]
        return {**leftovers(layout, uids), **{pid: _command_line(pid) for pid in same}}

    for _round in range(20):
        remaining = find()
        if not remaining:
            return {}
        for pid in remaining:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.1)
    return find()


def processes_of(uid: int) -> list[int]:
    """Pids of the live processes of one account."""
    return [pid for pid in _pids() if _uid(pid) == uid and start_ticks(pid) is not None]


def command_words(pid: int) -> list[str]:
    """The command line of a process, word by word; empty when it is gone."""
    return [word.decode(errors="replace") for word in _words(pid, "cmdline")]


def all_pids() -> list[int]:
    """Every pid of the machine."""
    return list(_pids())


def mounts_below(base: Path) -> list[str]:
    """Mount points below a directory, as far as this process sees them."""
    lines = (_PROC / "self" / "mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    return [point for point in (line.split()[1] for line in lines) if _lies_below(point, str(base))]


def is_marked_by(pid: int, layout: Layout) -> bool:
    """Whether a service of this stack started the process."""
    return f"{MARKER}={layout.base}".encode() in _words(pid, "environ")


def _pids() -> Iterable[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; the command name before it may hold anything."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _words(pid: int, name: str) -> list[bytes]:
    try:
        return (_PROC / str(pid) / name).read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


def _link(pid: int, name: str) -> str:
    """What a link in the process's directory points to; empty when that is gone."""
    try:
        return str((_PROC / str(pid) / name).readlink())
    except OSError:
        return ""


def _open_places(pid: int) -> list[str]:
    """Working directory and standard streams of a process."""
    return [_link(pid, name) for name in ("cwd", "fd/0", "fd/1", "fd/2")]


def _uid(pid: int) -> int | None:
    try:
        return (_PROC / str(pid)).stat().st_uid
    except OSError:
        return None


def _lies_below(path: str, base: str) -> bool:
    return path.startswith(base + "/")


def _command_line(pid: int) -> str:
    return " ".join(command_words(pid))[:200] or "?"


def _ancestors(pid: int) -> set[int]:
    known = {pid}
    while pid > 1:
        fields = _stat(pid)
        if fields is None:
            break
        pid = int(fields[1])
        known.add(pid)
    return known


def _group_members(group: int) -> list[int]:
    members = []
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None and fields[0] not in "ZX" and int(fields[2]) == group:
            members.append(pid)
    return members


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
