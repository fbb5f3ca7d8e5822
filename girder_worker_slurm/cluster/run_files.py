"""The way to run directories and to the spool of events: made, written, claimed, read, removed.

Whoever runs a job owns its run directory. Here `RunDirectories` does it all itself, for a worker and jobs that are one
Unix user on one file system. Nobody else in the worker touches what lies below `path`: the job's own user may be the
only one who can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

#: Of an event's fields: its secret, its kind, and the names of `Record.append`'s own arguments.
_NOT_KEPT = frozenset({"nonce", "kind", "event", "durable", "self"})


@dataclass(frozen=True)
class JobEvent:
    """What a job script left in the spool."""

    path: Path
    token: str
    kind: str
    slurm_job_id: str
    nonce: str
    fields: Mapping[str, Any]

    @property
    def entry(self) -> dict[str, Any]:
        """What a record keeps of it: nothing that an entry of a record has in a sense of its own, whatever the file says."""
        return {name: value for name, value in self.fields.items() if name not in _NOT_KEPT}


class RunFiles(Protocol):
    """The run directories and the spool of one jobs root. All methods raise OSError where the files cannot be reached."""

    @property
    def uid(self) -> int:
        """The number of the Unix user who runs the jobs."""

    @property
    def spool(self) -> Path:
        """Where job scripts leave their events."""

    def prepare(self) -> None:
        """Makes the directories that hold all others, for their owner alone."""

    def path(self, token: str) -> Path:
        """The directory of one attempt, as the nodes see it."""

    def create(self, token: str) -> Path:
        """A new run directory with its volume; raises FileExistsError if there is one."""

    def write(self, token: str, name: str, data: bytes, *, mode: int = 0o600) -> Path:
        """Writes one file of a run directory as a whole."""

    def read(self, token: str, name: str) -> bytes:
        """One of the files that were written."""

    def can_read(self, path: Path) -> bool:
        """Whether the job's user can read this file, anywhere on the cluster."""

    def inputs_place(self, token: str) -> Path:
        """Where the worker brings the inputs, below `volume` and `volumes`, before it hands them over."""

    def hand_over(self, token: str, check: Callable[[], None]) -> None:
        """Gives what was brought to `inputs_place` to the job; `check` is called between pieces and raises to stop."""

    def outputs_place(self, token: str, check: Callable[[], None]) -> Path:
        """A directory with `volume`, as the job left it, and `job.slurm`, as old as it is there, both the worker's to read."""

    def size(self, path: Path, *, anew: bool = True) -> int:
        """How long a log is, in bytes; 0 while it cannot be read.

        Without `anew` it may be what a network mount remembers, for which it asks nobody.
        """

    def read_at(self, path: Path, start: int, length: int) -> bytes:
        """A piece of a log; empty while it cannot be read."""

    def remove_log(self, path: Path) -> None:
        """Removes a log that lies outside of the run directories; one that is gone is no error."""

    def claim(self, token: str, why: str) -> bool:
        """Takes the claim for the worker, so that no copy of the job can start any more.

        False when a job has it already. True as well when the run directory is gone: nothing can start there.
        """

    def claimed_by(self, token: str) -> str:
        """`job`, `worker`, or empty while nobody has the claim."""

    def claimant(self, token: str) -> str:
        """The Slurm job id of the job that has the claim; empty if none has."""

    def events(self, is_wanted: Callable[[str], bool] | None = None, *, anew: bool = False) -> list[JobEvent]:
        """The complete events in the spool, of the tokens that are wanted.

        Files that are not events, or not of the user who runs the jobs, are left alone. With `anew` also those that a
        mount which remembers directories would not show yet; that costs its server a little.
        """

    def kept_events(self, token: str) -> list[JobEvent]:
        """The events of one attempt that were taken out of the spool before."""

    def keep(self, event: JobEvent) -> None:
        """Moves an event out of the spool into its run directory; without one, it is removed."""

    def remove_data(self, token: str) -> None:
        """Removes inputs, outputs, scratch, and the files that may hold secrets; log and script stay."""

    def remove(self, token: str) -> None:
        """Removes a whole run directory."""
