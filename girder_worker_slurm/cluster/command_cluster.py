"""Slurm by its commands, run through any `CommandRunner`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import (
    CommandError,
    CommandNotFound,
    CommandNotStarted,
    CommandTimeout,
)
from girder_worker_slurm.cluster import slurm_accounting, slurm_commands
from girder_worker_slurm.cluster.interface import JobDetail, QueueRow, SlurmJobId, Snapshot, Submission
from girder_worker_slurm.cluster.run_as import AccountAway, RunAs, sudo_refusal
from girder_worker_slurm.errors import (
    ClusterUnreachable,
    JobsHidden,
    SubmitDeferred,
    SubmitRejected,
    SubmitUnsure,
)
from girder_worker_slurm.options.partitions import parse_partitions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandResult, CommandRunner
    from girder_worker_slurm.cluster.budget import CallBudget
    from girder_worker_slurm.cluster.slurm_accounting import AccountedUsage, UsageSoFar
    from girder_worker_slurm.options.partitions import Partition

#: What sbatch may see of the worker's environment: it copies everything into the job. SLURM_*, SBATCH_* and the
#: like of a worker that itself runs inside a job would change ours silently.
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "SLURM_CONF", "LD_LIBRARY_PATH", "KRB5CCNAME", "TZ")

#: For so long it is believed that jobs of other users can be seen.
_SIGHT_SECONDS = 600.0
#: So many names are cancelled one by one.
_FEW = 4
#: Ids are a controller's to give out again when it has crashed: an order by ids must not wait for the next one.
_ID_SECONDS = 20.0


def command_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm commands, made from scratch."""
    passed = {name: environment[name] for name in _PASSED_ON if name in environment}
    return {**passed, "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "SLURM_TIME_FORMAT": "standard"}


@dataclass(frozen=True)
class CommandOptions:
    """How the commands are called."""

    user: str
    """The worker's own."""
    timeout_seconds: float = 180.0
    commands_dir: Path | None = None
    #: What the commands may see a part of; None: the worker's own environment.
    environment: Mapping[str, str] | None = None
    #: The other Unix users that jobs of ours run as.
    other_users: Callable[[], Sequence[str]] = tuple


class CommandCluster:
    """Slurm by sbatch, squeue, scontrol and scancel. srun, sacct and sstat are never needed."""

    def __init__(
        self,
        runner: CommandRunner,
        clock: Clock,
        budget: CallBudget,
        options: CommandOptions,
        run_as: RunAs | None = None,
    ) -> None:
        self._run_as = run_as or RunAs.here()
        self._runner = runner
        self._clock = clock
        self._budget = budget
        self._options = options
        self._environment = command_environment(
            os.environ if options.environment is None else options.environment
        )
        self._sight_until = -math.inf

    def submit(self, submission: Submission) -> SlurmJobId:
        """See `Cluster.submit`."""
        try:
            command = slurm_commands.sbatch_arguments(submission)
        except ValueError as error:
            raise SubmitRejected(str(error)) from error
        if submission.unix_user:
            try:
                self._require_sight()
            except JobsHidden as error:
                raise SubmitRejected(str(error)) from error
        try:
            result = self._run(command, submission.unix_user)
        except KeyError as error:
            msg = f"There is no Unix user {submission.unix_user} on the worker's machine (any more)."
            raise SubmitRejected(msg) from error
        except AccountAway as error:
            # Nothing was started: no doubt whether Slurm has it.
            raise ClusterUnreachable(str(error)) from error
        except CommandTimeout as error:
            msg = (
                f"sbatch did not answer within {self._options.timeout_seconds:.0f} s for {submission.token}."
            )
            raise SubmitUnsure(msg) from error
        except CommandNotFound as error:
            msg = f"`{error.program}` is not on this machine; set `commands_dir` in [slurm]."
            raise ClusterUnreachable(msg) from error
        except CommandNotStarted as error:
            raise ClusterUnreachable(str(error)) from error
        job_id = slurm_commands.parse_sbatch(result.stdout)
        if result.returncode == 0 and job_id is not None:
            return job_id
        words = _last_lines(result)
        if submission.unix_user and sudo_refusal(result.stderr):
            msg = f"The worker may not submit jobs of {submission.unix_user}: {words}. See `girder-slurm doctor`."
            raise SubmitRejected(msg)
        if result.returncode == 0 or result.returncode < 0 or slurm_commands.is_unsure(result.stderr):
            msg = f"sbatch gave no clear answer for {submission.token}: {words}"
            raise SubmitUnsure(msg)
        if slurm_commands.is_submit_limit(result.stderr):
            msg = f"Slurm accepts no more jobs for now: {words}"
            raise SubmitDeferred(msg, is_for_all=slurm_commands.is_queue_full(result.stderr))
        msg = f"Slurm refused the job: {words}"
        raise SubmitRejected(msg)

    def find(self, token: str, unix_user: str = "") -> tuple[QueueRow, ...]:
        """See `Cluster.find`."""
        users = (unix_user or self._options.user,)
        result = self._ask(slurm_commands.squeue_arguments(users, token))
        # Names of jobs are no secret: another user may have given one the same.
        rows = tuple(row for row in self._rows(result) if row.token == token and row.unix_user == unix_user)
        if unix_user and not rows:
            self._require_sight(anew=True)
        return rows

    def snapshot(self) -> Snapshot:
        """See `Cluster.snapshot`."""
        asked_at = self._clock.monotonic()
        users = (self._options.user, *self._options.other_users())
        result = self._ask(slurm_commands.squeue_arguments(tuple(dict.fromkeys(users))))
        return Snapshot(self._rows(result), asked_at, self._clock.monotonic() - asked_at)

    def describe(self, slurm_job_id: SlurmJobId) -> JobDetail | None:
        """See `Cluster.describe`."""
        result = self._ask(slurm_commands.scontrol_arguments(slurm_job_id), unknown_is_an_answer=True)
        detail = slurm_commands.parse_scontrol(result.stdout)
        if detail is None and not slurm_commands.is_unknown_job(result.stderr):
            msg = f"scontrol gave no clear answer for job {slurm_job_id}: {_last_lines(result)}"
            raise ClusterUnreachable(msg)
        if detail is None and self._options.other_users():
            # "Invalid job id" is said of jobs that may not be seen, too.
            self._require_sight(anew=True)
        return detail

    def partitions(self) -> dict[str, Partition]:
        """The partitions that this user can see; raises ClusterUnreachable."""
        return parse_partitions(self._ask(["scontrol", "--oneliner", "show", "partition"]).stdout)

    def accounted(self, slurm_job_ids: Sequence[str]) -> dict[str, AccountedUsage] | None:
        """What the accounting says about those of these jobs that have ended; None where there is none.

        Raises ClusterUnreachable.
        """
        command = slurm_accounting.sacct_arguments(slurm_job_ids)
        try:
            result = self._run(command)
        except CommandNotFound:
            return None
        except CommandTimeout as error:
            msg = f"sacct did not answer within {self._options.timeout_seconds:.0f} s."
            raise ClusterUnreachable(msg) from error
        except CommandError as error:
            raise ClusterUnreachable(str(error)) from error
        if result.returncode != 0:
            if slurm_accounting.is_absent(result.stderr):
                return None
            msg = f"sacct failed: {_last_lines(result)}"
            raise ClusterUnreachable(msg)
        return slurm_accounting.parse_sacct(result.stdout)

    def usage_so_far(self, slurm_job_id: SlurmJobId, token: str) -> UsageSoFar | None:
        """What a running job has used by now; None where Slurm does not measure that, or does not tell this user.

        None as well if the job of this id has another name, or does not run. Raises ClusterUnreachable.
        """
        detail = self.describe(slurm_job_id)
        if detail is None or detail.token != token or detail.state != "RUNNING":
            return None
        try:
            result = self._run(slurm_accounting.sstat_arguments(slurm_job_id))
        except CommandNotFound:
            return None
        except CommandError as error:
            raise ClusterUnreachable(str(error)) from error
        return slurm_accounting.parse_sstat(result.stdout, slurm_job_id) if result.returncode == 0 else None

    def cancel(self, tokens: Sequence[str], *, kill: bool = False, unix_user: str = "") -> None:
        """See `Cluster.cancel`."""
        user = unix_user or self._options.user
        # scancel has the controller list the jobs of all users for each name; one listing of ours has the ids of all.
        rows = self._rows(self._ask(slurm_commands.squeue_arguments((user,)))) if len(tokens) > _FEW else ()
        # Their user sees jobs that Slurm has begun to hide from this worker.
        if len(tokens) <= _FEW or (unix_user and not rows and self._is_blind()):
            for command in slurm_commands.scancel_arguments(tokens, user, kill=kill):
                self._ask(command, unknown_is_an_answer=True, unix_user=unix_user)
            return
        wanted = frozenset(tokens)
        ids = [
            row.slurm_job_id
            for row in rows
            if row.token in wanted
            and row.unix_user == unix_user
            and row.state not in slurm_commands.FINAL_STATES | {"COMPLETING"}
        ]
        for command in slurm_commands.scancel_id_arguments(ids, kill=kill):
            self._ask(
                command,
                unknown_is_an_answer=True,
                unix_user=unix_user,
                timeout_seconds=min(_ID_SECONDS, self._options.timeout_seconds),
            )

    def _require_sight(self, *, anew: bool = False) -> None:
        """Raises JobsHidden if this worker cannot see jobs of other users; `anew`: whatever was known before."""
        now = self._clock.monotonic()
        if not anew and self._sight_until > now:
            return
        if self._is_blind():
            msg = (
                "Slurm shows jobs to their own user only (PrivateData=jobs), so that this worker could not follow those of"
                f" others. Let the administrators make {self._options.user} an operator: sacctmgr modify user"
                f" {self._options.user} set adminlevel=operator."
            )
            raise JobsHidden(msg)
        self._sight_until = now + _SIGHT_SECONDS

    def _is_blind(self) -> bool:
        if self._run_as.is_root:
            return False
        answer = self._ask(["scontrol", "show", "config"])
        configuration = slurm_commands.parse_configuration(answer.stdout)
        if not slurm_commands.hides_jobs_of_others(configuration, self._options.user):
            return False
        try:
            level = self._run(slurm_commands.admin_level_arguments(self._options.user))
        except CommandNotFound:
            return True
        except CommandError as error:
            raise ClusterUnreachable(str(error)) from error
        if level.returncode != 0 and slurm_commands.is_unsure(level.stderr):
            # Accounts that cannot be asked for a minute are no reason to refuse jobs.
            msg = f"sacctmgr failed: {_last_lines(level)}"
            raise ClusterUnreachable(msg)
        return level.returncode != 0 or not slurm_commands.is_operator(level.stdout)

    def _rows(self, result: CommandResult) -> tuple[QueueRow, ...]:
        own = self._options.user
        rows = slurm_commands.parse_squeue(result.stdout)
        return tuple(replace(row, unix_user="") if row.unix_user == own else row for row in rows)

    def _ask(
        self,
        command: Sequence[str],
        *,
        unknown_is_an_answer: bool = False,
        unix_user: str = "",
        timeout_seconds: float | None = None,
    ) -> CommandResult:
        timeout_seconds = timeout_seconds or self._options.timeout_seconds
        try:
            result = self._run(command, unix_user, timeout_seconds)
        except KeyError as error:
            msg = f"There is no Unix user {unix_user} on the worker's machine (any more)."
            raise ClusterUnreachable(msg) from error
        except AccountAway as error:
            raise ClusterUnreachable(str(error)) from error
        except CommandTimeout as error:
            msg = f"{command[0]} did not answer within {timeout_seconds:.0f} s."
            raise ClusterUnreachable(msg) from error
        except CommandNotFound as error:
            msg = f"`{error.program}` is not on this machine; set `commands_dir` in [slurm]."
            raise ClusterUnreachable(msg) from error
        except CommandError as error:
            raise ClusterUnreachable(str(error)) from error
        if result.truncated:
            msg = f"The answer of {command[0]} is too long to be read as a whole."
            raise ClusterUnreachable(msg)
        if result.returncode != 0 and not (
            unknown_is_an_answer and slurm_commands.is_unknown_job(result.stderr)
        ):
            if slurm_commands.is_unsure(result.stderr):  # a refusal says nothing about Slurm's load
                self._budget.failed()
            msg = f"{command[0]} failed: {_last_lines(result)}"
            raise ClusterUnreachable(msg)
        return result

    def _run(
        self, command: Sequence[str], unix_user: str = "", timeout_seconds: float | None = None
    ) -> CommandResult:
        argv, environment = list(command), self._environment
        if self._options.commands_dir is not None:
            argv[0] = str(self._options.commands_dir / argv[0])
        if unix_user:
            argv, environment = self._run_as.command(unix_user, argv, environment)
        self._budget.take()
        try:
            result = self._runner.run(
                argv, timeout_seconds=timeout_seconds or self._options.timeout_seconds, env=environment
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
