"""Run directories and the event spool, as the worker reaches them when it and the jobs are one Unix user.

::

    <jobs root>/spool/                      <token>.<kind>.<attempt>.json, written by job scripts
    <jobs root>/run/<token>/                one attempt
        job.slurm  arguments  environment  nonce
        claim                               who has it: the job, or the worker that gave it up
        volume/                             inputs and outputs, mounted into the container
        scratch/                            /tmp of the container
        output.log  slurm.out               what the container, and what the script, printed
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.cluster.run_files import JobEvent

if TYPE_CHECKING:
    from collections.abc import Callable

_EVENT_LIMIT_BYTES = 64 * 1024


def ask_anew(directory: Path) -> None:
    """Has a network mount ask its server what is in a directory, instead of answering from memory for half a minute.

    It does where the directory was changed on this side, as by setting its times (seen: sshfs 3.7; NFS is made alike).
    Raises FileNotFoundError where there is none, whatever the mount remembers.
    """
    try:
        os.utime(directory)
    except FileNotFoundError:
        raise
    except OSError:
        # Read-only, or another's: then what the mount remembers has to do.
        pass


class RunDirectories:
    """`RunFiles` of a jobs root whose jobs are the worker's own Unix user."""

    def __init__(self, jobs_root: Path, *, uid: int | None = None) -> None:
        self.root = jobs_root / "run"
        self.spool = jobs_root / "spool"
        self.uid = os.getuid() if uid is None else uid

    def prepare(self) -> None:
        """Makes the two directories; raises OSError when that is not possible."""
        for directory in (self.root, self.spool):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)

    def path(self, token: str) -> Path:
        """The directory of one attempt."""
        return self.root / token

    def create(self, token: str) -> Path:
        """A new run directory with its volume and scratch."""
        path = self.path(token)
        path.mkdir(mode=0o700)
        for name in ("volume", "scratch"):
            (path / name).mkdir(mode=0o700)
        return path

    def write(self, token: str, name: str, data: bytes, *, mode: int = 0o600) -> Path:
        """Writes one file of a run directory as a whole."""
        path = self.path(token) / name
        draft = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
        draft.rename(path)
        return path

    def read(self, token: str, name: str) -> bytes:
        """One of the files that were written."""
        return (self.path(token) / name).read_bytes()

    def can_read(self, path: Path) -> bool:
        """Whether this user can read this file."""
        return path.is_file() and os.access(path, os.R_OK)

    def inputs_place(self, token: str) -> Path:
        """The run directory itself."""
        return self.path(token)

    def hand_over(self, token: str, check: Callable[[], None]) -> None:
        """Nothing is to be done: what the worker has brought, the job has."""

    def outputs_place(self, token: str, check: Callable[[], None]) -> Path:
        """The run directory itself."""
        del check
        return self.path(token)

    def size(self, path: Path, *, anew: bool = True) -> int:
        """How long a log is, in bytes; 0 while it cannot be read."""
        try:
            if not anew:
                return path.stat().st_size
            # Opened, as below: `stat` a network mount answers from memory.
            with path.open("rb") as handle:
                return os.fstat(handle.fileno()).st_size
        except OSError:
            return 0

    def read_at(self, path: Path, start: int, length: int) -> bytes:
        """A piece of a log; empty while it cannot be read."""
        try:
            # Opened anew each time: over NFS that is what makes other hosts' writes visible.
            with path.open("rb") as handle:
                handle.seek(start)
                return handle.read(length)
        except OSError:
            return b""

    def remove_log(self, path: Path) -> None:
        """Removes a log that lies outside of the run directories; one that is gone is no error."""
        path.unlink(missing_ok=True)

    def claim(self, token: str, why: str) -> bool:
        """Takes the claim for the worker, so that no copy of the job can start any more.

        False when a job has it already. True as well when the run directory is gone: nothing can start there.
        """
        path = self.path(token)
        mine = path / f"claim.worker.{uuid.uuid4().hex}"
        try:
            mine.write_text(json.dumps({"by": "worker", "why": why}) + "\n", encoding="utf-8")
        except FileNotFoundError:
            return True
        with contextlib.suppress(OSError):
            os.link(mine, path / "claim")
        # Over NFS link may fail although it worked: being the same file is what counts.
        return mine.samefile(path / "claim") or self.claimed_by(token) == "worker"

    def claimed_by(self, token: str) -> str:
        """`job`, `worker`, or empty while nobody has the claim."""
        return str(self._claim(token).get("by", ""))

    def claimant(self, token: str) -> str:
        """The Slurm job id of the job that has the claim; empty if none has."""
        claim = self._claim(token)
        return str(claim.get("slurm_job_id", "")) if claim.get("by") == "job" else ""

    def _claim(self, token: str) -> dict[str, Any]:
        path = self.path(token) / "claim"
        try:
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                # NFS remembers for a while that it was not there, too.
                ask_anew(path.parent)
                text = path.read_text(encoding="utf-8")
            content = json.loads(text)
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def events(self, is_wanted: Callable[[str], bool] | None = None, *, anew: bool = False) -> list[JobEvent]:
        """The complete events in the spool, of the tokens that are wanted.

        Files that are not events, or not this user's, are left alone.
        """
        events = []
        names = self.spooled(anew=anew)
        if is_wanted is not None:
            names = [name for name in names if is_wanted(name.partition(".")[0])]
        for name in sorted(names):
            event = self._read_event(self.spool / name)
            # Its token becomes part of a path, and whoever can write here chooses what is in the file.
            if event is not None and event.token == name.partition(".")[0]:
                events.append(event)
        return events

    def spooled(self, *, anew: bool = False) -> list[str]:
        """The names of all files in the spool that may be events; each begins with a token and a dot."""
        try:
            if anew:
                ask_anew(self.spool)
            with os.scandir(self.spool) as entries:
                return [
                    entry.name for entry in entries if entry.name[0] != "." and entry.name.endswith(".json")
                ]
        except FileNotFoundError:
            # Tidied away: without it no job can say how it ended. (A file system that is not mounted has neither of the two.)
            if not self.root.is_dir():
                raise
            # Renamed to its place, since `mkdir` fails where a mount remembers that it is there.
            draft = self.root.with_name(f".spool-{uuid.uuid4().hex}")
            draft.mkdir(mode=0o700)
            try:
                draft.rename(self.spool)
            except OSError:
                draft.rmdir()
                if not self.spool.is_dir():  # else somebody was faster
                    raise
            return []

    def kept_events(self, token: str) -> list[JobEvent]:
        """The events of one attempt that were taken out of the spool before."""
        found = [self._read_event(path) for path in sorted(self.path(token).glob("event.*.json"))]
        return [event for event in found if event is not None and event.token == token]

    def keep(self, event: JobEvent) -> None:
        """Moves an event out of the spool into its run directory; without one, it is removed."""
        self.keep_file(event.path.name, event.token)

    def keep_file(self, name: str, token: str) -> None:
        """Moves a file of the spool into this run directory; without one, it is removed."""
        try:
            (self.spool / name).rename(self.path(token) / f"event.{name}")
        except FileNotFoundError:
            (self.spool / name).unlink(missing_ok=True)

    def remove_data(self, token: str) -> None:
        """Removes inputs, outputs, scratch, and the files that may hold secrets; log and script stay."""
        for name in ("volume", "scratch", "volumes", "archive"):
            _remove_tree(self.path(token) / name)
        for name in ("arguments", "environment", "nonce"):
            (self.path(token) / name).unlink(missing_ok=True)

    def remove(self, token: str) -> None:
        """Removes a whole run directory."""
        _remove_tree(self.path(token))

    def _read_event(self, path: Path) -> JobEvent | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            handle = os.fdopen(descriptor, "rb")
        except OSError:  # a directory
            os.close(descriptor)
            return None
        with handle:
            status = os.fstat(handle.fileno())
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid != self.uid
                or status.st_size > _EVENT_LIMIT_BYTES
            ):
                return None
            try:
                return event_of(path, json.loads(handle.read()))
            except (ValueError, RecursionError):
                return None


def event_of(path: Path, fields: Any) -> JobEvent | None:
    """The event that these fields of a file are; None if they are none."""
    try:
        return JobEvent(
            path,
            str(fields["token"]),
            str(fields["kind"]),
            str(fields["slurm_job_id"]),
            str(fields["nonce"]),
            fields,
        )
    except (KeyError, TypeError):
        return None


def _remove_tree(path: Path) -> None:
    """Removes a tree in which a container may have left directories without permissions, as far as that is possible."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if not path.exists():
            return
    except OSError:
        pass
    else:
        return
    with contextlib.suppress(OSError):
        path.chmod(0o700)
        for directory, names, _ in os.walk(path):
            # Those of this level, before the walk goes into them.
            for below in (Path(directory) / name for name in names):
                if not below.is_symlink():
                    below.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
