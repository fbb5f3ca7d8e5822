"""What we ask Slurm's commands and how their answers are read. Pure: argv out, text in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from girder_worker_slurm.cluster.interface import JobDetail, QueueRow, SlurmJobId
from girder_worker_slurm.options.catalogue import RESERVED_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from girder_worker_slurm.cluster.interface import Submission

#: Field order of our squeue listing; the name comes last because it is the only text a stranger may choose.
_SQUEUE_FORMAT = "%i|%T|%r|%u|%j"

#: A job in the queue, for the first time or again (squeue(1), section JOB STATE CODES).
WAITING_STATES = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})

#: Final states by the same manual.
FINAL_STATES = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
        "LAUNCH_FAILED",
    }
)
#: The other states of the same manual; a word in neither set is kept as "not an end".
LIVE_STATES = frozenset(
    {
        "COMPLETING",
        "CONFIGURING",
        "PENDING",
        "POWER_UP_NODE",
        "RECONFIG_FAIL",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESIZING",
        "RESV_DEL_HOLD",
        "RUNNING",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
        "UPDATE_DB",
    }
)

_IDS_AT_ONCE = 200

_PARSABLE = re.compile(r"^([0-9]+)(?:;\S+)?$")
_JOB_ID = re.compile(r"[0-9]+\Z")
#: What int() takes without question: `str.isdigit` is true of "²" as well.
_NUMBER = re.compile(r"[0-9]{1,18}")
#: Limits that pass when our own jobs end; every other "violates accounting/QOS policy" is a refusal.
_SUBMIT_LIMIT = re.compile(r"(?:Max|Grp)SubmitJob|MaxJobCount|temporarily unable to accept", re.IGNORECASE)
#: MaxJobCount is reached: sbatch says so, tries again for two minutes, and gives up as if nobody had answered
#: ("Resource temporarily unavailable"; seen: 22.05.8). It was answered: there is no job.
_QUEUE_IS_FULL = re.compile(r"MaxJobCount|temporarily unable to accept", re.IGNORECASE)
_AFTER_FULL_QUEUE = "Resource temporarily unavailable"
#: sbatch could not bring its question to an end: the job may exist.
_UNSURE = re.compile(
    r"Socket timed out|Unable to contact slurm controller|Connection (refused|reset|timed out)|Zero Bytes"
    r"|authentication error|Munge|credential|standby mode|I/O error writing script|Resource temporarily unavailable"
    r"|Transport endpoint|Unexpected message received|Slurm controller not responding|communication"
    r"|Message (send|receive) failure|Insane message length|Header lengths",
    re.IGNORECASE,
)


def option_arguments(options: Sequence[tuple[str, str]]) -> list[str]:
    """Options as sbatch takes them: one letter ``-p value``, longer ``--mem=value``, an empty value is a flag.

    Raises ValueError naming an option that is reserved, malformed, or whose value has control characters.
    """
    arguments: list[str] = []
    for name, value in options:
        if not re.fullmatch(r"[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?", name):
            msg = f"`{name}` is not the name of an sbatch option."
            raise ValueError(msg)
        # sbatch takes the beginning of a long name for the name (seen: --outpu, --job-nam; 22.05.8).
        if name in RESERVED_OPTIONS or (len(name) > 1 and any(o.startswith(name) for o in RESERVED_OPTIONS)):
            msg = f"The sbatch option `{name}` is set by the worker itself and cannot be chosen."
            raise ValueError(msg)
        if any(ord(character) < 32 or ord(character) == 127 for character in value):
            msg = f"The value of the sbatch option `{name}` has control characters."
            raise ValueError(msg)
        if len(name) == 1:
            arguments += [f"-{name}", value] if value else [f"-{name}"]
        else:
            arguments.append(f"--{name}={value}" if value else f"--{name}")
    return arguments


def sbatch_arguments(submission: Submission) -> list[str]:
    """The sbatch command line of one submission."""
    return [
        "sbatch",
        "--parsable",
        f"--job-name={submission.token}",
        f"--output={submission.output}",
        f"--error={submission.output}",
        "--open-mode=append",
        "--no-requeue",
        "--export=ALL",
        "--chdir=/",
        *option_arguments(submission.options),
        str(submission.script),
    ]


def parse_sbatch(stdout: str) -> SlurmJobId | None:
    """The id in sbatch's answer; sites put banners around it, so the last line that is one counts."""
    for line in reversed(stdout.splitlines()):
        match = _PARSABLE.match(line.strip())
        if match:
            return SlurmJobId(match.group(1))
    return None


def is_submit_limit(stderr: str) -> bool:
    """Whether sbatch refused for a limit that passes when earlier jobs end."""
    return bool(_SUBMIT_LIMIT.search(stderr))


def is_unsure(stderr: str) -> bool:
    """Whether sbatch's complaint leaves open if the job exists."""
    if is_queue_full(stderr):
        stderr = stderr.replace(_AFTER_FULL_QUEUE, "")
    return bool(_UNSURE.search(stderr))


def is_queue_full(stderr: str) -> bool:
    """Whether the controller holds as many jobs as it can, of all users."""
    return bool(_QUEUE_IS_FULL.search(stderr))


def squeue_arguments(users: Sequence[str], token: str | None = None) -> list[str]:
    """One listing of all jobs of these users, ended ones that Slurm remembers included."""
    # Names, not --me: several users are listed at once, and --me of old versions misses `-t all`.
    command = [
        "squeue",
        "--noheader",
        "--all",
        "--states=all",
        f"--user={','.join(users)}",
        f"--format={_SQUEUE_FORMAT}",
    ]
    if token is not None:
        command.append(f"--name={token}")
    return command


def parse_squeue(stdout: str) -> tuple[QueueRow, ...]:
    """The rows of our listing, each with the name of its user; a line that is not one of ours (a banner) is passed over."""
    rows = []
    for line in stdout.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) == 5 and _JOB_ID.match(parts[0]):
            rows.append(QueueRow(SlurmJobId(parts[0]), first_word(parts[1]), parts[2], parts[4], parts[3]))
    return tuple(rows)


def first_word(state: str) -> str:
    """`CANCELLED by 1000` → `CANCELLED`, `COMPLETED+` → `COMPLETED`."""
    words = state.replace("+", " ").split()
    return words[0].upper() if words else ""


def scontrol_arguments(slurm_job_id: SlurmJobId) -> list[str]:
    """Asks for one job on one line."""
    # `scontrol show job ''` would answer with every job of the cluster.
    if not _JOB_ID.match(slurm_job_id):
        msg = f"{slurm_job_id!r} is not a Slurm job id."
        raise ValueError(msg)
    return ["scontrol", "--oneliner", "show", "job", slurm_job_id]


def parse_scontrol(stdout: str) -> JobDetail | None:
    """The job in scontrol's one-line answer; None if it holds none."""
    for line in stdout.splitlines():
        if line.startswith("JobId="):
            fields: dict[str, str] = {}
            for match in re.finditer(r"(?:^| )([A-Za-z_/:]+)=(\S*)", line):
                # The first one counts: a job's comment comes later, and may look like another field.
                fields.setdefault(match[1], match[2])
            if not _JOB_ID.match(fields["JobId"]):
                continue
            code, _, signal = fields.get("ExitCode", "0:0").partition(":")
            return JobDetail(
                slurm_job_id=SlurmJobId(fields["JobId"]),
                token=fields.get("JobName", ""),
                state=first_word(fields.get("JobState", "")),
                reason=fields.get("Reason", ""),
                exit_code=_number(code),
                signal=_number(signal),
                nodes=fields.get("NodeList", "").replace("(null)", ""),
                restarts=_number(fields.get("Restarts", "0")),
                run_time=fields.get("RunTime", ""),
                time_limit=fields.get("TimeLimit", ""),
            )
    return None


def _number(text: str) -> int:
    return int(text) if _NUMBER.fullmatch(text) else 0


def scancel_arguments(tokens: Sequence[str], user: str, *, kill: bool) -> list[list[str]]:
    """The scancel commands for one user's jobs of these names."""
    # --full signals the batch script and everything below it; without a signal Slurm ends the job properly.
    extra = ["--signal=KILL", "--full"] if kill else []
    # A name that is empty would fit all jobs of the user.
    return [["scancel", *extra, f"--user={user}", f"--name={token}"] for token in tokens if token]


def parse_configuration(text: str) -> dict[str, str]:
    """The lines `Name = value` of `scontrol show config`."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def hides_jobs_of_others(configuration: Mapping[str, str], user: str) -> bool:
    """Whether Slurm shows this user nobody else's jobs, unless the accounts say more of them (`is_operator`)."""
    hidden = configuration.get("PrivateData", "").lower().split(",")
    return "jobs" in hidden and configuration.get("SlurmUser", "").partition("(")[0] != user


def admin_level_arguments(user: str) -> list[str]:
    """Asks the accounts what a user may."""
    return ["sacctmgr", "--noheader", "--parsable2", "show", "user", user, "format=AdminLevel"]


def is_operator(stdout: str) -> bool:
    """Whether a user may see all, by the answer to `admin_level_arguments`."""
    # Coordinators see the jobs of their accounts, which no one can compare with those to come.
    return bool({line.strip() for line in stdout.splitlines()} & {"Operator", "Administrator"})


def scancel_id_arguments(slurm_job_ids: Sequence[SlurmJobId], *, kill: bool) -> list[list[str]]:
    """The scancel commands for these jobs, some hundred in each. Without a filter none of them lists the queue."""
    extra = ["--signal=KILL", "--full"] if kill else []
    return [
        ["scancel", *extra, *slurm_job_ids[start : start + _IDS_AT_ONCE]]
        for start in range(0, len(slurm_job_ids), _IDS_AT_ONCE)
    ]


def is_unknown_job(stderr: str) -> bool:
    """Whether a command complained that there is no such job (any more), or none that has not ended."""
    return "Invalid job id" in stderr or "already completing or completed" in stderr
