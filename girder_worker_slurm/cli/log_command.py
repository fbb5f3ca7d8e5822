"""`girder-slurm log JOB`: the log of one job, whole or as it grows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import click

from girder_worker_slurm.cli.answers import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.records.jobs_root import JobsRoot
    from girder_worker_slurm.records.record import Record


class Output(Protocol):
    """Where a log is printed."""

    def write(self, data: bytes, /) -> int:
        """Takes the next piece."""

    def flush(self) -> None:
        """Hands on what was taken."""


_LOOK_SECONDS = 0.5
_CHUNK_BYTES = 256 * 1024


@click.command("log", short_help="Print the log of a job.")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), default=None, help="Begin with this many last lines."
)
def log_command(*, job: str, follow: bool, tail: int | None) -> None:
    """Print the log of JOB: all that its container has written, also what is too long for Girder.

    Where that is gone or not there yet, the text for Girder's log is printed. On a terminal, characters that it would
    obey are shown as `^[` and the like; a file or another program gets them as they are. JOB is an id as for
    `girder-slurm show`.

    \b
    Examples:
      girder-slurm log 66f1c0ffee
      girder-slurm log --tail 20 --follow 48213
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.terminal import TerminalOutput  # noqa: PLC0415
    from girder_worker_slurm.cli.job_view import log_file  # noqa: PLC0415
    from girder_worker_slurm.cli.site import find_job, site_jobs_root  # noqa: PLC0415

    root = site_jobs_root()
    record = find_job(root, job)
    if not follow and log_file(record) is None:
        msg = f"Job {record.task_id} has no log yet." if not record.state.is_final else "The log was removed."
        raise Refusal(msg)
    raw = sys.stdout.buffer
    out = TerminalOutput(raw) if sys.stdout.isatty() else raw
    printer = LogPrinter(root, record, out, SystemClock(), tail=tail)
    printer.copy(follow=follow)


class LogPrinter:
    """Copies a log to a stream."""

    def __init__(
        self, root: JobsRoot, record: Record, out: Output, clock: Clock, *, tail: int | None = None
    ) -> None:
        self._root = root
        self._record = record
        self._out = out
        self._clock = clock
        self._tail = tail
        self._path: Path | None = None
        self._position = 0

    def copy(self, *, follow: bool) -> None:
        """Prints what is there, and with `follow` what comes until the job has ended."""
        from girder_worker_slurm.cli.site import reload  # noqa: PLC0415
        from girder_worker_slurm.job.state import Phase  # noqa: PLC0415

        while True:
            # State first, log second: what a job wrote before its end was recorded is in the log by then.
            record = reload(self._root, self._record)
            has_ended = record is None or record.state.phase >= Phase.DECIDED
            self._record = record or self._record
            self._copy_new()
            if has_ended or not follow:
                return
            self._clock.sleep(_LOOK_SECONDS)

    def _copy_new(self) -> None:
        from girder_worker_slurm.cli.job_view import log_file  # noqa: PLC0415

        path = log_file(self._record)
        if path is None:
            return
        if self._path is None:
            self._position = 0 if self._tail is None else tail_offset(path, self._tail)
        elif path.name != self._path.name:
            # From the text for Girder to the log itself: another text, so from its beginning.
            self._position = 0
        self._path = path
        try:
            with path.open("rb") as handle:
                if handle.seek(0, 2) < self._position:
                    self._position = 0
                handle.seek(self._position)
                while chunk := handle.read(_CHUNK_BYTES):
                    self._out.write(chunk)
                    self._position += len(chunk)
        except FileNotFoundError:
            return
        self._out.flush()


def tail_offset(path: Path, count: int) -> int:
    """Where the last lines of a file begin."""
    with path.open("rb") as handle:
        end = handle.seek(0, 2)
        if count == 0 or end == 0:
            return end
        wanted, position = count, end
        handle.seek(end - 1)
        if handle.read(1) == b"\n":
            # The end of the last line begins no line.
            position -= 1
        while position > 0:
            start = max(0, position - _CHUNK_BYTES)
            handle.seek(start)
            chunk = handle.read(position - start)
            for index in range(len(chunk) - 1, -1, -1):
                if chunk[index] == 10:
                    wanted -= 1
                    if wanted == 0:
                        return start + index + 1
            position = start
    return 0
