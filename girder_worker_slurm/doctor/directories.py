"""The directories of the worker, as this machine sees them; the probe job looks at them from a compute node."""

from __future__ import annotations

import json
import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.records.jobs_root import broker_identity, is_broker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.settings import Settings

JOBS_ROOT = "jobs root"
LOGS_DIR = "logs directory"
SUBMIT_SCRIPT = "submit script"

#: File systems that no other machine can see.
_NODE_LOCAL = frozenset({"tmpfs", "ramfs", "devtmpfs", "overlay"})
#: Places that are node-local nearly everywhere, whatever their file system.
_NODE_LOCAL_PLACES = ("/tmp", "/dev/shm", "/run", "/var/run")  # noqa: S108 - only compared with
_LITTLE_SPACE_BYTES = 1_000_000_000
_FEW_FILES = 10_000
_PRIVATE = ("record", "ended", "run", "spool", "unhandled")


@dataclass(frozen=True)
class DirectoryFacts:
    """What can be seen of a directory from here."""

    path: Path
    exists: bool
    #: Why nothing can be written there; empty when something could be.
    refusal: str
    owner: str = ""
    is_ours: bool = True
    mode: int = 0o700
    file_system: str = ""
    free_bytes: int = 0
    #: -1 where the file system does not count files.
    free_files: int = -1


def look_at(path: Path, *, make: bool = False) -> DirectoryFacts:
    """The facts about a directory; with `make` it is made if it is missing, as the worker's start does."""
    refusal = ""
    try:
        if make:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        exists = path.is_dir()
        if not exists and path.exists():
            return DirectoryFacts(path, exists=False, refusal="it is a file")
    except OSError as error:
        return DirectoryFacts(path, exists=False, refusal=_words(error))
    place = path if exists else nearest_existing(path)
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"probe")
    except OSError as error:
        refusal = _words(error)
    try:
        status, room = place.stat(), os.statvfs(place)
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return DirectoryFacts(path, exists=exists, refusal=refusal or _words(error))
    return DirectoryFacts(
        path,
        exists=exists,
        refusal=refusal,
        owner=_user_name(status.st_uid),
        is_ours=status.st_uid == os.geteuid(),
        mode=stat.S_IMODE(status.st_mode),
        file_system=file_system_of(place.resolve(), mountinfo),
        free_bytes=room.f_bavail * room.f_frsize,
        free_files=room.f_favail if room.f_files else -1,
    )


def nearest_existing(path: Path) -> Path:
    """The directory itself, or the nearest one above it that exists."""
    for place in (path, *path.parents):
        if place.is_dir():
            return place
    return Path("/")


def file_system_of(path: Path, mountinfo: str) -> str:
    """The type of the file system of a resolved path, by /proc/self/mountinfo; empty if it is not in there."""
    found, best = "", -1
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5:
            continue
        # Spaces and the like are written in octal there.
        mount = fields[4].encode().decode("unicode_escape")
        is_below = mount == "/" or str(path) == mount or str(path).startswith(f"{mount}/")
        if is_below and len(mount) >= best:
            found, best = after.split()[0], len(mount)
    return found


def judge_directory(check: str, setting: str, facts: DirectoryFacts, *, private: bool) -> Iterator[Finding]:
    """Whether the worker can work with a directory; `private` for one that holds tokens."""
    path = facts.path
    if facts.refusal:
        what = "cannot be written" if facts.exists else "does not exist and cannot be made"
        yield fail(
            check,
            f"{path} {what}: {facts.refusal}.",
            f"Set {setting} to a directory that this user can write, or give this user the directory.",
        )
        return
    if facts.exists and private and not facts.is_ours:
        yield fail(
            check,
            f"{path} belongs to {facts.owner}.",
            f"Run this as {facts.owner}, or give the worker's user a directory of its own in {setting}.",
        )
        return
    kind = f" ({facts.file_system})" if facts.file_system else ""
    if facts.exists:
        yield ok(check, f"{path}{kind} can be written, {_size(facts.free_bytes)} free.")
    else:
        yield ok(check, f"{path}{kind} does not exist yet; the worker makes it.")
    if facts.exists and private and facts.mode & 0o077:
        yield warn(
            check,
            f"{path} is open to other users (mode {facts.mode:04o}); what it holds lets one act on Girder jobs.",
            f"Run: chmod 700 {path}",
        )
    if facts.file_system in _NODE_LOCAL or _is_below(path, _NODE_LOCAL_PLACES):
        yield warn(
            check,
            f"{path}{kind} looks local to this machine.",
            f"Set {setting} to a directory on a file system that the compute nodes share.",
        )
    if facts.free_bytes < _LITTLE_SPACE_BYTES:
        yield warn(check, f"Only {_size(facts.free_bytes)} are free in {path}.", "Make room, or move it.")
    if 0 <= facts.free_files < _FEW_FILES:
        yield warn(
            check, f"Only {facts.free_files} more files fit into {path}.", "Remove files, or raise the quota."
        )


def check_jobs_root(settings: Settings, *, make: bool = False) -> Iterator[Finding]:
    """The jobs root: usable, private, and of this broker and these queues."""
    root = settings.jobs_root
    facts = look_at(root, make=make)
    yield from judge_directory(JOBS_ROOT, "`root` in [jobs]", facts, private=True)
    if not facts.is_ours:
        return
    foreign = [
        f"{name} (of {_user_name(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o})"
        for name, status in _present(root, _PRIVATE)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077
    ]
    if foreign:
        yield warn(
            JOBS_ROOT,
            f"In {root} these directories are not this user's alone: {', '.join(foreign)}.",
            "Give them to the worker's user with mode 0700.",
        )
    stored = _stored_identity(root)
    if stored is not None:
        broker_url = settings.celery.broker.get_secret_value()
        yield from judge_identity(root, stored, broker_url, settings.celery.queues)


def judge_identity(
    root: Path, stored: dict[str, object], broker_url: str, queues: Sequence[str]
) -> Iterator[Finding]:
    """Whether a jobs root belongs to this broker and these queues."""
    if is_broker(stored.get("broker"), broker_url) and stored.get("queues") == sorted(queues):
        return
    yield fail(
        JOBS_ROOT,
        f"{root} belongs to broker {stored.get('broker')}, queues {stored.get('queues')}; the settings say"
        f" {broker_identity(broker_url)}, queues {sorted(queues)}.",
        f"Give this worker a root of its own, or, if the broker moved, edit {root / 'root.json'}.",
    )


def check_logs_dir(settings: Settings, *, make: bool = False) -> Iterator[Finding]:
    """The directory of full logs, if one is set."""
    if settings.jobs.logs_dir is not None:
        facts = look_at(settings.jobs.logs_dir, make=make)
        yield from judge_directory(LOGS_DIR, "`logs_dir` in [jobs]", facts, private=False)


def check_submit_script(settings: Settings) -> Iterator[Finding]:
    """A site's own submit script, if one is set."""
    script = settings.slurm.submit_script
    if script is None:
        return
    try:
        text = script.read_bytes()
    except OSError as error:
        yield fail(
            SUBMIT_SCRIPT,
            f"{script} cannot be read: {_words(error)}.",
            "Set `submit_script` in [slurm] to a script that the worker's user can read, or leave it empty.",
        )
        return
    yield ok(SUBMIT_SCRIPT, f"{script} can be read.")
    if b"$@" not in text:
        yield warn(
            SUBMIT_SCRIPT,
            f'{script} nowhere uses "$@", which holds the arguments of `apptainer exec`.',
            'Start the container in it with: apptainer exec "$@"',
        )


def _present(root: Path, names: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]:
    for name in names:
        try:
            yield name, (root / name).stat()
        except OSError:
            continue


def _stored_identity(root: Path) -> dict[str, object] | None:
    """What root.json says; None where no worker has been yet."""
    try:
        stored = json.loads((root / "root.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        return {}
    return stored if isinstance(stored, dict) else {}


def _is_below(path: Path, places: Sequence[str]) -> bool:
    return any(str(path) == place or str(path).startswith(f"{place}/") for place in places)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _words(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
