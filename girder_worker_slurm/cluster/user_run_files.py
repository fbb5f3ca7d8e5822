"""Run directories and spool of a Unix user that is not the worker's, reached through `girder-slurm-files` run as that user.

::

    <run root of the user>/                 0700, the user's; as the jobs root has them:
        spool/  run/<token>/
    <jobs root>/tmp/transfers/<token>/      the worker's own
        in/                                 inputs, until they are handed over
        out/                                outputs, until Girder has them

For each user one program answers what takes a moment, and another does what may take long, such as removing thousands of
files: the thread that looks at events must not wait for it. A transfer has one of its own. One that dies is started again
at the next question.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.command_runner import CommandError
from girder_worker_slurm.cluster.files_program import INPUTS, STAGED
from girder_worker_slurm.cluster.frames import PIECE_BYTES, PROTOCOL, FrameInvalid, frame, read_frame
from girder_worker_slurm.cluster.run_as import AccountAway, sudo_refusal
from girder_worker_slurm.cluster.run_directory import event_of
from girder_worker_slurm.cluster.tree_transfer import END, TreeReceiver, staged_entries

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import Conversation
    from girder_worker_slurm.cluster.run_files import JobEvent

__all__ = ["INPUTS", "UserRunFiles", "UserUnreachable"]

_ANSWER_SECONDS = 30.0
_TRANSFER_SECONDS = 120.0
#: For thousands of files on a slow file system.
_WORK_SECONDS = 600.0
#: A user whose files cannot be reached is not tried for so long: others must not wait. It doubles, some times, with
#: each silence that others had to wait for, within this time after the last one.
_SUSPECT_SECONDS = 3600.0
_PAUSE_SECONDS = 20.0
_MOST_DOUBLINGS = 5
_SILENCE_SECONDS = 5.0
#: A program that nobody has asked for so long is ended.
_IDLE_SECONDS = 600.0


class UserUnreachable(OSError):
    """The files of a Unix user cannot be reached; `is_refused` if nothing changes about it until a person does something."""

    def __init__(self, what: str, *, is_refused: bool = False) -> None:
        super().__init__(errno.EHOSTUNREACH, what)
        self.is_refused = is_refused

    def __str__(self) -> str:
        return str(self.strerror)


class UserRunFiles:
    """`RunFiles` of one other Unix user. Safe to use from many threads."""

    def __init__(
        self,
        user: str,
        root: Path,
        *,
        uid: int,
        transfers: Path,
        start: Callable[[], Conversation],
        clock: Clock,
    ) -> None:
        self.user = user
        self.uid = uid
        self.root = root / "run"
        self.spool = root / "spool"
        self._transfers = transfers
        self._start = start
        self._clock = clock
        self._lines = tuple(_Line(self, clock, seconds) for seconds in (_ANSWER_SECONDS, _WORK_SECONDS))
        self._paused_until = 0.0
        self._silences = 0
        self._suspect_until = 0.0
        self._why_paused: UserUnreachable | None = None
        self._is_prepared = False

    def prepare(self) -> None:
        """Has the directories made, once."""
        if not self._is_prepared:
            self._have_done("prepare")
            self._is_prepared = True

    def close(self) -> None:
        """Ends the programs."""
        for line in self._lines:
            line.close()

    def close_idle(self) -> None:
        """Ends the programs that have had nothing to do for long; they are started again when they have."""
        for line in self._lines:
            line.close_if_idle()

    def path(self, token: str) -> Path:
        """The directory of one attempt, as the nodes see it."""
        return self.root / token

    def create(self, token: str) -> Path:
        """A new run directory with its volume and scratch; a transfer that was broken off before is forgotten."""
        self.prepare()
        self._remove_transfers(token)
        self._have_done("create", token=token)
        return self.path(token)

    def write(self, token: str, name: str, data: bytes, *, mode: int = 0o600) -> Path:
        """Writes one file of a run directory as a whole."""
        self._have_done("write", data, token=token, name=name, mode=mode)
        return self.path(token) / name

    def read(self, token: str, name: str) -> bytes:
        """One of the files that were written."""
        data = bytearray()
        while piece := self._ask("read", token=token, name=name, start=len(data), length=PIECE_BYTES)[1]:
            data += piece
        return bytes(data)

    def can_read(self, path: Path) -> bool:
        """Whether the user can read this file of the worker's machine."""
        return self._have_done("can_read", path=str(path))[0] is True

    def can_enter(self, path: Path) -> bool:
        """Whether the user can list this directory of the worker's machine and use what is in it."""
        return self._have_done("can_enter", path=str(path))[0] is True

    def inputs_place(self, token: str) -> Path:
        """A directory of the worker's own."""
        place = self._transfers / token / "in"
        (place / "volume").mkdir(mode=0o700, parents=True, exist_ok=True)
        return place

    def hand_over(self, token: str, check: Callable[[], None]) -> None:
        """Copies the inputs into the run directory, and removes them here."""
        place = self._transfers / token / "in"
        with contextlib.closing(self.new_program()) as program:
            program.send({"do": "put", "token": token})
            try:
                for head, data in staged_entries(place, STAGED):
                    check()
                    program.send(head, data)
                program.send(*END)
            except BrokenPipeError:
                program.answer(_TRANSFER_SECONDS)  # says why it stopped reading
                raise
            program.answer(_TRANSFER_SECONDS)
        shutil.rmtree(place, ignore_errors=True)

    def outputs_place(self, token: str, check: Callable[[], None]) -> Path:
        """A directory of the worker's own, with a copy of the volume but for inputs that nothing was written to."""
        place = self._transfers / token / "out"
        if place.is_dir():
            return place
        draft = place.with_name(".out")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        receiver = TreeReceiver(draft, ("volume",))
        try:
            with contextlib.closing(self.new_program()) as program:
                program.send({"do": "collect", "token": token})
                begun, _ = program.entry()
                if begun.get("entry") != "begun":
                    raise FrameInvalid("The outputs came without their beginning.")
                while receiver.take(*program.entry()):
                    check()
        finally:
            receiver.close()
        script = draft / "job.slurm"
        script.touch(mode=0o600)
        os.utime(script, ns=(int(begun["mtime_ns"]), int(begun["mtime_ns"])))
        draft.rename(place)
        return place

    def size(self, path: Path, *, anew: bool = True) -> int:
        """How long a log in a run directory is, in bytes, always anew; 0 if it is not there."""
        del anew
        try:
            return int(self._ask("size", token=path.parent.name, name=path.name)[0])
        except (FileNotFoundError, PermissionError):
            return 0

    def read_at(self, path: Path, start: int, length: int) -> bytes:
        """A piece of a log in a run directory; empty if it is not there."""
        data = bytearray()
        where: dict[str, Any] = {"token": path.parent.name, "name": path.name}
        with contextlib.suppress(FileNotFoundError, PermissionError):
            while len(data) < length:
                piece = self._ask("read", **where, start=start + len(data), length=length - len(data))[1]
                if not piece:
                    break
                data += piece
        return bytes(data)

    def remove_log(self, path: Path) -> None:
        """Nothing is to be done: the log goes with its run directory."""

    def claim(self, token: str, why: str) -> bool:
        """See `RunFiles.claim`."""
        return self._ask("claim", token=token, why=why)[0] is True

    def claimed_by(self, token: str) -> str:
        """See `RunFiles.claimed_by`."""
        return self._claimed(token)[0]

    def claimant(self, token: str) -> str:
        """See `RunFiles.claimant`."""
        return self._claimed(token)[1]

    def events(self, is_wanted: Callable[[str], bool] | None = None, *, anew: bool = False) -> list[JobEvent]:
        """See `RunFiles.events`; one question if there are none."""
        names = self._ask("spool", anew=anew)[0]
        if not isinstance(names, list):
            raise FrameInvalid("The names in the spool are no list.")
        tokens = {str(name).partition(".")[0] for name in names}
        wanted = sorted(token for token in tokens if is_wanted is None or is_wanted(token))
        return self._events("events", tokens=wanted) if wanted else []

    def kept_events(self, token: str) -> list[JobEvent]:
        """See `RunFiles.kept_events`."""
        return self._events("kept_events", token=token)

    def keep(self, event: JobEvent) -> None:
        """See `RunFiles.keep`."""
        self._ask("keep", name=event.path.name, token=event.token)

    def remove_data(self, token: str) -> None:
        """See `RunFiles.remove_data`; removes what is left of transfers, too."""
        self._remove_transfers(token)
        self._have_done("remove_data", token=token)

    def remove(self, token: str) -> None:
        """See `RunFiles.remove`."""
        self._remove_transfers(token)
        self._have_done("remove", token=token)

    # -- inside

    def _remove_transfers(self, token: str) -> None:
        shutil.rmtree(self._transfers / token, ignore_errors=True)

    def _claimed(self, token: str) -> tuple[str, str]:
        found = self._ask("claimed", token=token)[0]
        if not isinstance(found, list) or len(found) != 2:
            raise FrameInvalid("Who has the claim was not said.")
        return str(found[0]), str(found[1])

    def _events(self, do: str, **fields: Any) -> list[JobEvent]:
        found = self._ask(do, **fields)[0]
        events = []
        for entry in found if isinstance(found, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("fields"), dict):
                # The name goes back to the program alone; as a path it is only shown.
                event = event_of(self.spool / Path(str(entry.get("name"))).name, entry["fields"])
                events += [event] if event is not None else []
        return events

    def _ask(self, do: str, **fields: Any) -> tuple[Any, bytes]:
        return self._lines[0].ask(do, **fields)

    def _have_done(self, do: str, data: bytes = b"", **fields: Any) -> tuple[Any, bytes]:
        return self._lines[1].ask(do, data, **fields)

    # -- for the lines to its programs

    def new_program(self) -> _Program:
        """A program that has just been started; raises UserUnreachable, for a while without a try."""
        begun = self._clock.monotonic()
        if self._why_paused is not None and begun < self._paused_until:
            raise UserUnreachable(str(self._why_paused), is_refused=self._why_paused.is_refused)
        try:
            program = _Program(self._start(), self.user, self.uid)
        except (UserUnreachable, AccountAway, CommandError, KeyError) as error:
            why = (
                error
                if isinstance(error, UserUnreachable)
                else UserUnreachable(
                    f"Nothing can be run as {self.user}: {error}",
                    is_refused=not isinstance(error, AccountAway),
                )
            )
            self.pause(why, since=begun)
            raise why from error
        self._why_paused = None
        return program

    def pause(self, why: UserUnreachable, *, since: float) -> None:
        """Does not try this user for a while; for longer if others have waited, and waited before, since they were asked."""
        now = self._clock.monotonic()
        if now - since >= _SILENCE_SECONDS:
            # Answers in between do not count: whoever stops a program can let it go on for a moment.
            self._silences = self._silences + 1 if now < self._suspect_until else 1
            self._suspect_until = now + _SUSPECT_SECONDS
        self._why_paused = why
        self._paused_until = now + _PAUSE_SECONDS * 2 ** min(self._silences, _MOST_DOUBLINGS)


class _Line:
    """One program at a time, asked by one thread at a time."""

    def __init__(self, files: UserRunFiles, clock: Clock, timeout_seconds: float) -> None:
        self._files = files
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._program: _Program | None = None
        self._asked_at = 0.0

    def ask(self, do: str, data: bytes = b"", **fields: Any) -> tuple[Any, bytes]:
        """Asks the program; one that has died meanwhile is started again, and asked once more."""
        with self._lock:
            self._asked_at = self._clock.monotonic()
            is_new = self._program is None
            try:
                return self._ask(do, data, fields)
            except (BrokenPipeError, EOFError) as error:
                if is_new:
                    raise self._lost(error) from error
            except (TimeoutError, FrameInvalid) as error:
                raise self._lost(error) from error
            self._forget()
            try:
                return self._ask(do, data, fields)
            except (BrokenPipeError, EOFError, TimeoutError, FrameInvalid) as error:
                raise self._lost(error) from error

    def close(self) -> None:
        """Ends the program."""
        with self._lock:
            self._forget()

    def close_if_idle(self) -> None:
        """Ends a program that nobody has asked for long."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._clock.monotonic() - self._asked_at >= _IDLE_SECONDS:
                self._forget()
        finally:
            self._lock.release()

    def _ask(self, do: str, data: bytes, fields: dict[str, Any]) -> tuple[Any, bytes]:
        self._program = self._program or self._files.new_program()
        self._program.send({"do": do, **fields}, data)
        return self._program.answer(self._timeout_seconds)

    def _lost(self, error: Exception) -> UserUnreachable:
        said = "" if self._program is None else self._program.last_words()
        self._forget()
        why = " ".join(filter(None, (str(error) or "it ended", said)))
        lost = UserUnreachable(f"girder-slurm-files gave no answer: {why}.")
        if isinstance(error, TimeoutError):
            # It may be stopped, by whoever it runs as: all others have waited for it.
            self._files.pause(lost, since=self._asked_at)
        return lost

    def _forget(self) -> None:
        if self._program is not None:
            self._program.close()
            self._program = None


class _Program:
    """A `girder-slurm-files` that has said who it is."""

    def __init__(self, conversation: Conversation, user: str, uid: int) -> None:
        """Raises UserUnreachable if it is not what it should be; it is ended then."""
        self._conversation = conversation
        try:
            hello, _ = read_frame(partial(conversation.receive, timeout_seconds=_ANSWER_SECONDS))
            if "error" in hello:
                msg = (
                    f"The run directories of {user} cannot be used: {hello.get('what')}: {hello.get('path')}."
                )
                raise UserUnreachable(msg, is_refused=True)
            if hello.get("uid") != uid:
                msg = f"What was to run as {user} runs as the user of the number {hello.get('uid')}."
                raise UserUnreachable(msg, is_refused=True)
            if hello.get("protocol") != PROTOCOL:
                msg = "girder-slurm-files is of another version than the worker; install the same."
                raise UserUnreachable(msg, is_refused=True)
        except (EOFError, OSError) as error:
            said = conversation.last_words()
            conversation.close()
            if isinstance(error, UserUnreachable):
                raise
            refusal = sudo_refusal(said)
            why = said.splitlines()[-1] if said else (str(error) or "it ended without a word")
            msg = f"girder-slurm-files cannot be run as {user}: {refusal or why}"
            raise UserUnreachable(msg, is_refused=bool(refusal)) from error

    def send(self, head: dict[str, Any], data: bytes = b"") -> None:
        """Sends a frame; raises BrokenPipeError, TimeoutError."""
        self._conversation.send(frame(head, data), timeout_seconds=_TRANSFER_SECONDS)

    def answer(self, timeout_seconds: float) -> tuple[Any, bytes]:
        """The answer to a question; raises the OSError that the program met, EOFError, TimeoutError."""
        head, data = self.entry(timeout_seconds)
        return head.get("value"), data

    def entry(self, timeout_seconds: float = _TRANSFER_SECONDS) -> tuple[dict[str, Any], bytes]:
        """The next frame, unless it is an error, which is raised."""
        receive = partial(self._conversation.receive, timeout_seconds=timeout_seconds)
        head, data = read_frame(receive)
        if "error" in head:
            number, path = head["error"], str(head.get("path") or "")
            raise OSError(int(number), str(head.get("what")), *([path] if path else []))
        return head, data

    def last_words(self) -> str:
        """The last line of its errors."""
        return (self._conversation.last_words().splitlines() or [""])[-1]

    def close(self) -> None:
        """Ends it."""
        self._conversation.close()
