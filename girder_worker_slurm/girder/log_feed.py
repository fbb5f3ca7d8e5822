"""What Girder's log of one job consists of, and how much of it Girder has.

``girder.log`` in the record is the text as Girder is to show it: the container's output without progress
elements, and the worker's own lines. ``log.json`` says how far the output has been read, how far
``girder.log`` is valid and how far Girder has it. A crash between any two writes repeats and loses nothing:
what lies beyond `written` was never sent and is cut off; what lies between `sent` and `sending` may or may
not have arrived, and is compared with the end of Girder's log.

Girder appends each update as one entry of a list and keeps only the last ``4 MiB / len(update)`` entries, so a
long update after many short ones would push the short ones out. `next_update` keeps below that, or hands out
the whole log to be written anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from girder_worker_slurm.girder.output_text import read_output
from girder_worker_slurm.records.record import write_durably

if TYPE_CHECKING:
    from pathlib import Path

_GIRDER_LOG_BYTES = 4 * 1024**2
_READ_BYTES = 256 * 1024
_UPDATE_BYTES = 512 * 1024
_TAIL_SHARE = 0.2
#: So many that no update is put behind them.
_UNKNOWN_ENTRIES = _GIRDER_LOG_BYTES
_COMPARED_BYTES = 64 * 1024
_KEPT_MESSAGE_CHARACTERS = 1000


@dataclass
class FeedPosition:
    """How far everything has come, in bytes, and what was said on the way."""

    #: Of the container's output.
    read: int = 0
    #: Of girder.log, as far as it is valid.
    written: int = 0
    #: Of girder.log, as far as Girder surely has it.
    sent: int = 0
    #: Of girder.log, as far as Girder may have it: an update under way, or one whose answer never came.
    sending: int = 0
    #: Entries in Girder's list.
    entries: int = 0
    #: Where the head ended, when the output is too long for Girder; -1 while it is not.
    head_end: int = -1
    #: The file of output that `read` and `head_end` belong to: each attempt has one of its own.
    output: str = ""
    #: Attempts whose end has been told.
    tries: int = 0
    #: The program's latest text of progress, for the worker that goes on after this one.
    message: str = ""


@dataclass(frozen=True)
class LogUpdate:
    """A piece of log for Girder."""

    text: str
    #: Whether it replaces what Girder has.
    overwrite: bool
    end: int


class OutputFiles(Protocol):
    """The way to the files that containers write their output to (`RunFiles`). All methods raise OSError."""

    def size(self, path: Path, *, anew: bool = True) -> int:
        """How long one is, in bytes; 0 while it cannot be read. Without `anew` as a network mount remembers it."""

    def read_at(self, path: Path, start: int, length: int) -> bytes:
        """A piece of one; empty while it cannot be read."""


class LogFeed:
    """The log of one job on its way to Girder. Used by one thread at a time."""

    __slots__ = ("_files", "_limit", "_position", "_record", "message", "output", "progress")

    def __init__(self, record: Path, output: Path | None, files: OutputFiles, *, limit_bytes: int) -> None:
        self._record = record
        self._limit = limit_bytes
        self.output: Path | None = None
        self.progress: float | None = None
        self._position = self._load()
        self.message = self._position.message or None
        self.follow(output, files)

    @property
    def has_doubt(self) -> bool:
        """Whether an update may or may not have reached Girder."""
        return self._position.sending > self._position.sent

    @property
    def has_pending(self) -> bool:
        """Whether there is text that Girder has not got."""
        return self._position.written > self._position.sent

    @property
    def written_bytes(self) -> int:
        """How long the text for Girder is."""
        return self._position.written

    @property
    def read_bytes(self) -> int:
        """How much of the container's output has been read."""
        return self._position.read

    @property
    def output_bytes(self) -> int:
        """How long the container's output is by now; 0 while it cannot be read."""
        return 0 if self.output is None else self._files.size(self.output)

    def follow(self, output: Path | None, files: OutputFiles) -> None:
        """Reads this output from now on; that of another attempt from its beginning."""
        self._files = files
        self.output = output
        position = self._position
        if output is not None and position.output != str(output):
            if position.output:
                position.read, position.head_end = 0, -1
            position.output = str(output)

    def note_try(self, number: int, text: str) -> None:
        """Adds a line about the end of this attempt (1 is the first), unless that was done before."""
        if number > self._position.tries:
            self._position.tries = number
            self.note(text)

    def note(self, text: str) -> None:
        """Adds a line of the worker's own."""
        start = "" if self._ends_with_newline() else "\n"
        self._write(f"{start}{text.rstrip()}\n")
        self._save()

    def reaches(self, length: int) -> bool:
        """Whether so many bytes of the container's output can be read, whatever a mount remembers of its length."""
        return self._position.read >= length or bool(self._read_output(length - 1, 1))

    def has_new_output(self, *, anew: bool = True) -> bool:
        """Whether the container has written more than has been read; without `anew` as a network mount remembers it."""
        return self.output is not None and self._files.size(self.output, anew=anew) > self._position.read

    def read(self, *, final: bool = False) -> bool:
        """Takes in new output; True if there was any. With `final` all of it, and nothing is held back."""
        if self.output is None:
            return False
        any_read = False
        while self._read_piece(final=final):
            any_read = True
            if not final or self._position.head_end >= 0:
                break  # of a log that is too long only the end is wanted, and read by itself
        if final and self._position.head_end >= 0:
            self._write_tail()
        if any_read or final:
            self._save()
        return any_read

    def next_update(self) -> LogUpdate | None:
        """The next piece for Girder, recorded as being under way; None when Girder has everything."""
        position = self._position
        if position.written <= position.sent:
            return None
        pending = position.written - position.sent
        longest = _GIRDER_LOG_BYTES // (position.entries + 2)
        overwrite = min(pending, _UPDATE_BYTES) > longest
        start = 0 if overwrite else position.sent
        end = position.written if overwrite else min(position.written, position.sent + _UPDATE_BYTES)
        data = self._slice(start, end)
        if end < position.written:
            data = data[: len(data) - _cut(data)]
            end = start + len(data)
        position.sending = end
        self._save()
        return LogUpdate(data.decode("utf-8", errors="replace"), overwrite, end)

    def update_arrived(self, update: LogUpdate) -> None:
        """Girder has confirmed an update."""
        self._position.sent = self._position.sending = update.end
        self._position.entries = 1 if update.overwrite else self._position.entries + 1
        self._save()

    def settle_doubt(self, girder_log: str) -> None:
        """Decides, by what Girder's log ends with, whether the update under way arrived."""
        position = self._position
        before = self._slice(max(0, position.sent - _COMPARED_BYTES), position.sent).decode(
            "utf-8", errors="replace"
        )
        doubtful = self._slice(position.sent, position.sending).decode("utf-8", errors="replace")
        # Lines repeat: what stands before is compared too, and a log that ends as it did before has got nothing.
        has_all = self._slice(0, position.sending).decode("utf-8", errors="replace") == girder_log
        has_less = self._slice(0, position.sent).decode("utf-8", errors="replace") == girder_log
        if doubtful and not has_less and (has_all or girder_log.endswith(before + doubtful)):
            position.sent = position.sending
            position.entries += 1
        position.sending = position.sent
        self._save()

    # -- the files

    def _load(self) -> FeedPosition:
        log = self._record / "girder.log"
        try:
            stored = json.loads((self._record / "log.json").read_text(encoding="utf-8"))
            position = FeedPosition(**stored)
        except (FileNotFoundError, ValueError, TypeError):
            # If a power cut took it, what Girder has is not known any more: it gets all that there is, instead of that.
            position = FeedPosition(entries=_UNKNOWN_ENTRIES if log.exists() else 0)
        if log.exists() and log.stat().st_size > position.written:
            os.truncate(log, position.written)
        return position

    def _save(self) -> None:
        # Not synced: after a power cut a piece of log may be repeated, which the comparison with Girder's end finds.
        write_durably(self._record / "log.json", json.dumps(asdict(self._position)), sync=False)

    def _write(self, text: str) -> None:
        if not text:
            return
        data = text.encode("utf-8", errors="replace")
        descriptor = os.open(self._record / "girder.log", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as handle:
            if os.fstat(descriptor).st_size != self._position.written:
                # A full disk has left a part of something there.
                handle.truncate(self._position.written)
            handle.seek(self._position.written)
            view = memoryview(data)
            while view:
                view = view[handle.write(view) :]
        self._position.written += len(data)

    def _slice(self, start: int, end: int) -> bytes:
        try:
            with (self._record / "girder.log").open("rb") as handle:
                handle.seek(start)
                return handle.read(end - start)
        except FileNotFoundError:
            return b""

    def _ends_with_newline(self) -> bool:
        written = self._position.written
        return written == 0 or self._slice(written - 1, written) == b"\n"

    def _read_output(self, start: int, length: int) -> bytes:
        return b"" if self.output is None else self._files.read_at(self.output, start, length)

    def _read_piece(self, *, final: bool) -> bool:
        position = self._position
        data = self._read_output(position.read, _READ_BYTES)
        if not data:
            return False
        is_end = final and len(data) < _READ_BYTES
        piece = read_output(data, final=is_end)
        consumed = piece.consumed
        if consumed == 0 and len(data) == _READ_BYTES:
            piece = read_output(data, final=True)
            consumed = len(data)
        if piece.progress is not None:
            self.progress = piece.progress
        if piece.message:
            self.message = piece.message
            position.message = piece.message[:_KEPT_MESSAGE_CHARACTERS]
        if position.head_end < 0:
            self._write(piece.text)
            if position.written > self._limit * (1 - _TAIL_SHARE):
                position.head_end = position.read + consumed
                self.note(
                    "[The log is longer than Girder keeps. Its end follows when the job has ended; the whole log is"
                    f" in {self.output}, or: girder-slurm log {self._record.name}]"
                )
        position.read += consumed
        return consumed > 0

    def _write_tail(self) -> None:
        """The end of an output that was too long, without what the head already has."""
        position = self._position
        size = self.output_bytes
        tail = int(self._limit * _TAIL_SHARE)
        start = max(position.head_end, size - tail)
        if start > position.head_end:
            self.note(f"[{start - position.head_end} bytes are left out here]")
        self._write(read_output(self._read_output(start, size - start), final=True).text)
        position.head_end = position.read = max(size, position.head_end)


def _cut(data: bytes) -> int:
    """How many bytes at the end belong to a character that is not complete."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            return back if data[-back] >= 0xC0 else 0
    return 0
