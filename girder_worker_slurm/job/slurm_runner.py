"""Programs of the worker run as Slurm jobs, for what a login node must not do: the conversion of images.

::

    <jobs root>/tmp/commands/<token>/      one program
        owner.json                         whose it is: when that worker has ended, its job is cancelled
        command.slurm arguments environment
        claim/                             made by the job that runs it
        output  exit                       what it printed, and its exit status once it has ended
"""

from __future__ import annotations

import codecs
import contextlib
import re
import secrets
import shutil
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import (
    CommandError,
    CommandNotFound,
    CommandResult,
    CommandStopped,
    CommandTimeout,
)
from girder_worker_singularity.holder import Holder, read_holder, write_holder
from girder_worker_slurm.cluster.interface import SlurmJobId, Submission
from girder_worker_slurm.cluster.run_directory import ask_anew
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.errors import SubmitUnsure, Unreachable
from girder_worker_slurm.job.verdict import waiting_text
from girder_worker_slurm.script.render import argument_file, render_command_script

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.cluster.interface import Cluster

#: What a program on a node gets of the worker's environment; the rest may hold secrets of the worker.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|TZ|DOCKER_CONFIG|(APPTAINER|SINGULARITY)_(?!DOCKER_)\w+|\w+_(proxy|PROXY)"
)
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 15.0
_AGAIN_SECONDS = 10.0
_GRACE_SECONDS = 15.0
_KEPT_CHARACTERS = 256 * 1024
_LINE_END = re.compile(r"[\r\n]")
_NOT_FOUND = 127
_LEFT_OVER = ".gone"


class SlurmCommandRunner:
    """A `CommandRunner` that runs each program as a Slurm job of its own; safe to use from many threads.

    Its limits: no input for the program, no working directory, and an environment of few variables. Time in the queue
    does not count against a program's time. Raises SubmitRejected where Slurm refuses the job.
    """

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        directory: Path,
        *,
        token_prefix: str,
        options: tuple[tuple[str, str], ...] = (),
        scratch_variables: tuple[str, ...] = (),
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._directory = directory
        self._token_prefix = token_prefix
        self._options = options
        self._scratch_variables = scratch_variables
        self._waited_for: set[str] = set()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> CommandResult:
        """See `CommandRunner.run`; stderr is mixed into stdout. Raises CommandError where input is given."""
        if stdin:
            msg = f"{argv[0]!r} cannot be given input in a Slurm job."
            raise CommandError(msg)
        return self.stream(
            argv,
            timeout_seconds=timeout_seconds,
            on_line=lambda _line: None,
            env=env,
            cwd=cwd,
            should_stop=should_stop,
        )

    def stream(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        on_line: Callable[[str], None],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> CommandResult:
        """See `CommandRunner.stream`. While the job waits, its state in Slurm is handed over as lines."""
        if cwd is not None:
            msg = f"{argv[0]!r} cannot be run in {cwd} by a Slurm job."
            raise CommandError(msg)
        token = f"{self._token_prefix}c{secrets.token_hex(10)}"
        run = self._directory / token
        watch = _Watch(argv, run, on_line)
        self._waited_for.add(token)
        try:
            self._write(run, token, argv, env or {})
            slurm_job_id = self._submit(token, run, watch, should_stop)
            try:
                return self._watch(slurm_job_id, watch, timeout_seconds, should_stop)
            except BaseException:
                with contextlib.suppress(
                    Unreachable
                ):  # without its directory it is nobody's, and cancelled as such
                    self._cluster.cancel([token])
                raise
        finally:
            self._waited_for.discard(token)
            _remove(run)

    def tokens(self) -> set[str]:
        """The names of the jobs that somebody waits for here now."""
        return set(self._waited_for)

    def end_abandoned(self) -> None:
        """Cancels the jobs of workers that ended without doing so, as far as this host can tell; removes their files.

        Raises ClusterUnreachable.
        """
        for run in self._directory.glob("*"):
            if run.suffix == _LEFT_OVER:
                shutil.rmtree(run, ignore_errors=True)
                continue
            owner = read_holder(run / "owner.json")
            if owner is not None and owner.is_gone():
                self._cluster.cancel([run.name])
                _remove(run)

    def _write(self, run: Path, token: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        run.mkdir(mode=0o700)
        write_holder(run / "owner.json", Holder.this_process("worker"))
        passed = tuple(f"{name}={value}" for name, value in env.items() if _PASSED_ON.fullmatch(name))
        for name, data in (
            ("arguments", argument_file(tuple(argv))),
            ("environment", argument_file(passed)),
            ("command.slurm", render_command_script(token, str(run), self._scratch_variables).encode()),
        ):
            path = run / name
            path.touch(mode=0o600)
            path.write_bytes(data)

    def _submit(
        self, token: str, run: Path, watch: _Watch, should_stop: Callable[[], bool] | None
    ) -> SlurmJobId:
        submission = Submission(token, run / "command.slurm", run / "slurm.out", self._options)
        missed = 0
        while True:
            try:
                return self._cluster.submit(submission)
            except SubmitUnsure:
                missed = 1
            except Unreachable as error:
                watch.tell(f"Slurm: {error}")
            while missed:
                # It may exist: submitted again only after it was looked for twice, and then only one of the two runs.
                self._sleep(_AGAIN_SECONDS, watch, should_stop, (token,))
                with contextlib.suppress(Unreachable):
                    if rows := self._cluster.find(token):
                        return rows[-1].slurm_job_id
                    missed = (missed + 1) % 3
            self._sleep(_AGAIN_SECONDS, watch, should_stop, (token,))

    def _watch(
        self,
        slurm_job_id: SlurmJobId,
        watch: _Watch,
        timeout_seconds: float,
        should_stop: Callable[[], bool] | None,
    ) -> CommandResult:
        until = ended_at = 0.0
        next_look = self._clock.monotonic() + _LOOK_SECONDS
        why = ""
        while True:
            self._sleep(_POLL_SECONDS, watch, should_stop)
            now = self._clock.monotonic()
            if ended_at or now >= next_look:
                watch.ask_anew()
            watch.read()
            code = watch.exit_code()
            if code is not None:
                watch.read(last=True)
                if code == _NOT_FOUND:
                    raise CommandNotFound(watch.argv[0])
                return CommandResult(tuple(watch.argv), code, watch.text, "")
            if watch.has_begun:
                until = until or now + timeout_seconds
                if now >= until:
                    raise CommandTimeout(watch.argv, timeout_seconds, watch.text)
            if ended_at and now - ended_at >= _GRACE_SECONDS:
                watch.tell(why)
                return CommandResult(tuple(watch.argv), -9, watch.text, "")
            if now >= next_look and not ended_at:
                next_look = now + _LOOK_SECONDS
                state = self._end_state(slurm_job_id, watch)
                if state:
                    ended_at, why = now, f"FATAL: Slurm job {slurm_job_id} ended without a result ({state})."

    def _end_state(self, slurm_job_id: SlurmJobId, watch: _Watch) -> str:
        """How Slurm says the job has ended; empty while it, or another submission of the same program, has not."""
        try:
            rows = self._cluster.find(watch.token)
        except Unreachable:
            return ""
        for row in rows:
            if row.state not in FINAL_STATES:
                if not watch.has_begun:
                    watch.tell(waiting_text(row.state, row.reason))
                return ""
        state = next((row.state for row in rows if row.slurm_job_id == slurm_job_id), "")
        return state or "Slurm does not know it any more"

    def _sleep(
        self,
        seconds: float,
        watch: _Watch,
        should_stop: Callable[[], bool] | None,
        tokens: tuple[str, ...] = (),
    ) -> None:
        until = self._clock.monotonic() + seconds
        while True:
            if should_stop is not None and should_stop():
                if tokens:
                    with contextlib.suppress(Unreachable):
                        self._cluster.cancel(tokens)
                raise CommandStopped(watch.argv, watch.text)
            left = until - self._clock.monotonic()
            if left <= 0:
                return
            self._clock.sleep(min(left, _POLL_SECONDS))


class _Watch:
    """What one program has printed so far."""

    def __init__(self, argv: Sequence[str], run: Path, on_line: Callable[[str], None]) -> None:
        self.argv = tuple(argv)
        self.text = ""
        self._run = run
        self._on_line = on_line
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._told = ""

    @property
    def token(self) -> str:
        """The name of its jobs."""
        return self._run.name

    @property
    def has_begun(self) -> bool:
        """Whether a job has begun to run it."""
        return (self._run / "output").exists()

    def ask_anew(self) -> None:
        """Looks for files that a network mount remembers to be missing."""
        with contextlib.suppress(FileNotFoundError):
            ask_anew(self._run)

    def read(self, *, last: bool = False) -> None:
        """Hands new lines over; the last one also without its end."""
        data = b""
        with contextlib.suppress(OSError), (self._run / "output").open("rb") as output:
            output.seek(self._offset)
            data = output.read()
        self._offset += len(data)
        text = self._decoder.decode(data, final=last)
        self.text = (self.text + text)[-_KEPT_CHARACTERS:]
        *lines, self._line = _LINE_END.split(self._line + text)
        if last:
            lines.append(self._line)
        for line in lines:
            if line.strip():
                self._on_line(line)

    def exit_code(self) -> int | None:
        """Its exit status, once it has ended."""
        try:
            return int((self._run / "exit").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def tell(self, line: str) -> None:
        """Hands a line over that is not the program's; once as long as it is the same."""
        if line != self._told:
            self._told = line
            self.text += f"{line}\n"
            self._on_line(line)


def _remove(run: Path) -> None:
    """Removes the files of one run, also while its job is still writing there.

    Under another name first: a file that the job makes in the midst of it would keep the directory, then without the
    note of its owner, and so for ever. What is left under the new name goes the next time.
    """
    gone = run.with_name(f"{run.name}{_LEFT_OVER}")
    with contextlib.suppress(OSError):
        run.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
