"""Slurm by its commands, run through any `CommandRunner`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandNotFound, CommandTimeout
from girder_worker_slurm.cluster import slurm_commands
from girder_worker_slurm.cluster.interface import JobDetail, QueueRow, SlurmJobId, Snapshot, Submission
from girder_worker_slurm.errors import ClusterUnreachable, SubmitDeferred, SubmitRejected, SubmitUnsure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandResult, CommandRunner
    from girder_worker_slurm.cluster.budget import CallBudget

#: What sbatch may see of the worker's environment: it copies everything into the job. SLURM_*, SBATCH_* and the
#: like of a worker that itself runs inside a job would change ours silently.
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "SLURM_CONF", "LD_LIBRARY_PATH", "KRB5CCNAME", "TZ")


def command_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm commands, made from scratch."""
    passed = {name: environment[name] for name in _PASSED_ON if name in environment}
    return {**passed, "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "SLURM_TIME_FORMAT": "standard"}


@dataclass(frozen=True)
class CommandOptions:
    """How the commands are called."""

    users: tuple[str, ...]
    timeout_seconds: float = 180.0
    commands_dir: Path | None = None


class CommandCluster:
    """Slurm by sbatch, squeue, scontrol and scancel. srun, sacct and sstat are never needed."""

    def __init__(
        self, runner: CommandRunner, clock: Clock, budget: CallBudget, options: CommandOptions
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._budget = budget
        self._options = options
        self._environment = command_environment(os.environ)

    def submit(self, submission: Submission) -> SlurmJobId:
        """See `Cluster.submit`."""
        try:
            command = slurm_commands.sbatch_arguments(submission)
        except ValueError as error:
            raise SubmitRejected(str(error)) from error
        try:
            result = self._run(command)
        except CommandTimeout as error:
            msg = (
                f"sbatch did not answer within {self._options.timeout_seconds:.0f} s for {submission.token}."
            )
            raise SubmitUnsure(msg) from error
        except CommandNotFound as error:
            msg = f"`{error.program}` is not on this machine; set `commands_dir` in [slurm]."
            raise ClusterUnreachable(msg) from error
        job_id = slurm_commands.parse_sbatch(result.stdout)
        if result.returncode == 0 and job_id is not None:
            return job_id
        words = _last_lines(result)
        if result.returncode == 0 or result.returncode < 0 or slurm_commands.is_unsure(result.stderr):
            msg = f"sbatch gave no clear answer for {submission.token}: {words}"
            raise SubmitUnsure(msg)
        if slurm_commands.is_submit_limit(result.stderr):
            msg = f"Slurm accepts no more jobs for now: {words}"
            raise SubmitDeferred(msg)
        msg = f"Slurm refused the job: {words}"
        raise SubmitRejected(msg)

    def find(self, token: str) -> tuple[QueueRow, ...]:
        """See `Cluster.find`."""
        result = self._ask(slurm_commands.squeue_arguments(self._options.users, token))
        return tuple(row for row in slurm_commands.parse_squeue(result.stdout) if row.token == token)

    def snapshot(self) -> Snapshot:
        """See `Cluster.snapshot`."""
        asked_at = self._clock.monotonic()
        result = self._ask(slurm_commands.squeue_arguments(self._options.users))
        rows = slurm_commands.parse_squeue(result.stdout)
        return Snapshot(rows, asked_at, self._clock.monotonic() - asked_at)

    def describe(self, slurm_job_id: SlurmJobId) -> JobDetail | None:
        """See `Cluster.describe`."""
        result = self._ask(slurm_commands.scontrol_arguments(slurm_job_id), unknown_is_an_answer=True)
        detail = slurm_commands.parse_scontrol(result.stdout)
        if detail is None and not slurm_commands.is_unknown_job(result.stderr):
            msg = f"scontrol gave no clear answer for job {slurm_job_id}: {_last_lines(result)}"
            raise ClusterUnreachable(msg)
        return detail

    def cancel(
        self, slurm_job_ids: Sequence[SlurmJobId] = (), tokens: Sequence[str] = (), *, kill: bool = False
    ) -> None:
        """See `Cluster.cancel`."""
        users = self._options.users
        for command in slurm_commands.scancel_arguments(slurm_job_ids, tokens, users, kill=kill):
            self._ask(command, unknown_is_an_answer=True)

    def _ask(self, command: Sequence[str], *, unknown_is_an_answer: bool = False) -> CommandResult:
        try:
            result = self._run(command)
        except CommandTimeout as error:
            msg = f"{command[0]} did not answer within {self._options.timeout_seconds:.0f} s."
            raise ClusterUnreachable(msg) from error
        except CommandNotFound as error:
            msg = f"`{error.program}` is not on this machine; set `commands_dir` in [slurm]."
            raise ClusterUnreachable(msg) from error
        if result.truncated:
            msg = f"The answer of {command[0]} is too long to be read as a whole."
            raise ClusterUnreachable(msg)
        if result.returncode != 0 and not (
            unknown_is_an_answer and slurm_commands.is_unknown_job(result.stderr)
        ):
            self._budget.failed()
            msg = f"{command[0]} failed: {_last_lines(result)}"
            raise ClusterUnreachable(msg)
        return result

    def _run(self, command: Sequence[str]) -> CommandResult:
        argv = list(command)
        if self._options.commands_dir is not None:
            argv[0] = str(self._options.commands_dir / argv[0])
        self._budget.take()
        try:
            result = self._runner.run(
                argv, timeout_seconds=self._options.timeout_seconds, env=self._environment
            )
        except CommandTimeout:
            self._budget.failed()
            raise
        if result.returncode == 0:
            self._budget.succeeded()
        return result


def _last_lines(result: CommandResult) -> str:
    """What the command said, short: sbatch's reasons come on stderr in one to three lines."""
    lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    return " ".join(lines[-3:]) or f"exit code {result.returncode}, no output"
