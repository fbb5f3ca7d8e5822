"""Slurm's commands and configuration, as this machine sees them."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_slurm.cluster.command_cluster import command_environment
from girder_worker_slurm.cluster.slurm_commands import option_arguments, parse_configuration
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.errors import ClusterUnreachable
from girder_worker_slurm.options.partitions import used_partitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from girder_worker_singularity.command_runner import CommandResult, CommandRunner
    from girder_worker_slurm.cluster.run_as import RunAs
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.options.partitions import Partition

COMMANDS = "Slurm commands"
OPTIONS = "sbatch options"
CONTROLLER = "Slurm controller"
PARTITION = "partition"
MEMORY = "memory of the nodes"
CONFIGURATION = "Slurm configuration"

_NAMES = ("sbatch", "squeue", "scancel", "scontrol")
_OLDEST = (22, 5)
_SHORT_MEMORY_SECONDS = 60
_LITTLE_MEGABYTES = 1000


class SlurmQuestions:
    """What the doctor asks Slurm beyond what the worker needs."""

    def __init__(
        self,
        runner: CommandRunner,
        commands_dir: Path | None,
        *,
        timeout_seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._runner = runner
        self._commands_dir = commands_dir
        self._timeout_seconds = timeout_seconds
        self._environment = command_environment(os.environ if environment is None else environment)

    def ask(
        self, *argv: str, stdin: str | None = None, run_as: RunAs | None = None, user: str = ""
    ) -> CommandResult:
        """The command's answer, to another user with `run_as`; raises CommandError when there is none."""
        command = [str(self._commands_dir / argv[0]) if self._commands_dir else argv[0], *argv[1:]]
        environment = self._environment
        if run_as is not None:
            command, environment = run_as.command(user, command, environment)
        return self._runner.run(command, timeout_seconds=self._timeout_seconds, env=environment, stdin=stdin)

    def where(self, name: str) -> str:
        """The full path of a command; its name if it is not here."""
        wanted = str(self._commands_dir / name) if self._commands_dir else name
        return shutil.which(wanted, path=self._environment.get("PATH")) or wanted


def check_commands(commands_dir: Path | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the four commands are here; starts none of them."""
    path = environment.get("PATH")
    where = {
        name: shutil.which(str(commands_dir / name) if commands_dir else name, path=path) for name in _NAMES
    }
    missing = [name for name, path in where.items() if path is None]
    if missing:
        yield fail(
            COMMANDS,
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {commands_dir or 'PATH'}.",
            "Set `commands_dir` or `slurm_module` in [slurm], or PATH, or run the worker on a machine from which jobs are submitted.",
        )
        return
    yield ok(COMMANDS, f"{', '.join(_NAMES)} are in {os.path.dirname(where['sbatch'] or '')}.")  # noqa: PTH120


def check_options(options: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Whether the options of every job are ones that a site may set."""
    try:
        option_arguments(options)
    except ValueError as error:
        yield fail(OPTIONS, str(error), "Take it out of [slurm.options], or correct it there.")
        return
    yield ok(OPTIONS, ", ".join(name for name, _ in options) or "none.")


def check_controller(slurm: SlurmQuestions) -> Iterator[Finding]:
    """Version, and whether the controller answers."""
    try:
        version, ping = slurm.ask("sbatch", "--version"), slurm.ask("scontrol", "ping")
    except CommandError as error:
        yield fail(CONTROLLER, str(error), "Ask the cluster's administrators why Slurm does not answer here.")
        return
    yield from judge_controller(version, ping)


def judge_controller(version: CommandResult, ping: CommandResult) -> Iterator[Finding]:
    """What `sbatch --version` and `scontrol ping` say."""
    number = re.search(r"(\d+)\.(\d+)[.\d]*", version.stdout)
    name = number[0] if number else "of an unknown version"
    if not re.search(r"\bis UP\b", ping.stdout):
        yield fail(
            CONTROLLER,
            f"Slurm {name}; `scontrol ping` says: {_words(ping)}.",
            "Start slurmctld, let this machine reach it (slurm.conf, munge, firewall), or set SLURM_CONF where slurm.conf is"
            " not in its usual place.",
        )
    elif number and (int(number[1]), int(number[2])) < _OLDEST:
        yield warn(
            CONTROLLER, f"Slurm {name} answers.", "Use Slurm 22.05 or later; older ones were never tried."
        )
    else:
        yield ok(CONTROLLER, f"Slurm {name} answers.")


def check_partition(
    slurm: SlurmQuestions, options: Sequence[tuple[str, str]], *, has_script: bool
) -> Iterator[Finding]:
    """The partition of the settings, or the cluster's default."""
    wanted = next((value for name, value in options if name in ("partition", "p")), "")
    try:
        answer = slurm.ask("scontrol", "--oneliner", "show", "partition")
    except CommandError as error:
        yield fail(PARTITION, str(error), "Ask the cluster's administrators why Slurm does not answer here.")
        return
    yield from judge_partition(wanted, answer.stdout, has_script=has_script)


def judge_partition(wanted: str, listing: str, *, has_script: bool) -> Iterator[Finding]:
    """Whether jobs have a partition to go to, by `scontrol --oneliner show partition`."""
    partitions = {
        fields["PartitionName"]: fields
        for fields in (_fields(line) for line in listing.splitlines())
        if "PartitionName" in fields
    }
    if not wanted:
        default = next((name for name, fields in partitions.items() if fields.get("Default") == "YES"), "")
        if default:
            yield ok(PARTITION, f"[slurm] names none: jobs go to the cluster's default, {default}.")
            wanted = default
        elif has_script:
            yield ok(
                PARTITION,
                "[slurm] names none and the cluster has no default: the submit script has to name one.",
            )
            return
        else:
            yield fail(
                PARTITION,
                "[slurm] names none, and the cluster has no default.",
                f"Set `partition` in [slurm] to one of: {', '.join(sorted(partitions)) or 'none can be seen'}.",
            )
            return
    for name in wanted.split(","):
        fields = partitions.get(name)
        if fields is None:
            yield fail(
                PARTITION,
                f"There is no partition {name} that this user can see.",
                f"Set `partition` in [slurm] to one of: {', '.join(sorted(partitions)) or 'none can be seen'}.",
            )
        elif fields.get("State") != "UP":
            yield warn(
                PARTITION,
                f"{name} is {fields.get('State', 'in an unknown state')}: jobs wait there or are refused.",
                "Choose another `partition` in [slurm], or ask the cluster's administrators.",
            )
        else:
            limit = fields.get("MaxTime", "")
            yield ok(
                PARTITION,
                f"{name} is up{f', jobs may run {limit}' if limit and limit != 'UNLIMITED' else ''}.",
            )


def check_memory(
    partitions: Callable[[], Mapping[str, Partition]], options: Sequence[tuple[str, str]]
) -> Iterator[Finding]:
    """Whether jobs can be given memory here at all."""
    try:
        used = used_partitions(dict(options), partitions())
    except ClusterUnreachable as error:
        yield warn(MEMORY, str(error), "Ask the cluster's administrators why Slurm does not answer here.")
        return
    if any(found is None or found.counts_memory for found in used):
        return
    yield warn(
        MEMORY,
        f"slurm.conf does not say how much the nodes of {', '.join(found.name for found in used if found)} have"
        " (RealMemory): Slurm would refuse a job that asks for memory, so the options of memory are left out.",
        "Ask the administrators for RealMemory, and for CR_Core_Memory, so that jobs do not take each other's memory.",
    )


def check_configuration(
    slurm: SlurmQuestions, options: Sequence[tuple[str, str]], *, max_submitted: int, has_script: bool
) -> Iterator[Finding]:
    """What in Slurm's configuration will surprise."""
    try:
        answer = slurm.ask("scontrol", "show", "config")
    except CommandError as error:
        yield warn(
            CONFIGURATION, str(error), "Ask the cluster's administrators why Slurm does not answer here."
        )
        return
    fields = parse_configuration(answer.stdout)
    if not fields:
        yield warn(
            CONFIGURATION,
            f"`scontrol show config` says: {_words(answer)}.",
            "Ask the cluster's administrators whether this is meant to be hidden; jobs do not need it.",
        )
        return
    findings = list(judge_configuration(fields, options, max_submitted=max_submitted, has_script=has_script))
    yield from findings or [
        ok(
            CONFIGURATION,
            f"Nothing in the configuration of {fields.get('ClusterName', 'the cluster')} is in the way.",
        )
    ]


def judge_configuration(
    fields: Mapping[str, str], options: Sequence[tuple[str, str]], *, max_submitted: int, has_script: bool
) -> Iterator[Finding]:
    """Warnings about Slurm's configuration; none if all is well."""
    remembered = _number(fields.get("MinJobAge", ""))
    if remembered is not None and remembered < _SHORT_MEMORY_SECONDS:
        yield warn(
            CONFIGURATION,
            f"Slurm forgets ended jobs after {remembered} s (MinJobAge), so a killed job may go without its reason.",
            "Ask the administrators for MinJobAge of 300, which is Slurm's default.",
        )
    places = _number(fields.get("MaxJobCount", ""))
    if places is not None and places <= max_submitted:
        yield warn(
            CONFIGURATION,
            f"Slurm holds {places} jobs at most (MaxJobCount), and this worker may submit {max_submitted}.",
            f"Set `max_submitted` in [jobs] well below {places}, or other users cannot submit.",
        )
    selected = fields.get("SelectTypeParameters", "").upper()
    confined = (
        "task/cgroup" in fields.get("TaskPlugin", "")
        and fields.get("ConstrainRAMSpace", "yes").lower() != "no"
    )
    if "MEMORY" not in selected:
        yield warn(
            CONFIGURATION,
            f"Memory is not handed out to jobs (SelectTypeParameters {selected or 'not set'}): jobs share a node's"
            " memory, and one can take it all.",
            "Choose `exclusive` in [slurm.options], or ask the administrators for CR_Core_Memory.",
        )
    elif not confined and "OverMemoryKill" not in fields.get("JobAcctGatherParams", ""):
        yield warn(
            CONFIGURATION,
            "Slurm does not hold jobs to their memory (no task/cgroup with ConstrainRAMSpace): a job that takes too"
            " much harms its neighbours.",
            "Ask the administrators for TaskPlugin=task/cgroup with ConstrainRAMSpace=yes.",
        )
    yield from _judge_default_memory(fields, options, has_script=has_script)


def _judge_default_memory(
    fields: Mapping[str, str], options: Sequence[tuple[str, str]], *, has_script: bool
) -> Iterator[Finding]:
    if has_script or any(name.startswith("mem") for name, _ in options):
        return
    for name, per in (("DefMemPerCPU", "CPU"), ("DefMemPerNode", "node"), ("DefMemPerGPU", "GPU")):
        megabytes = _number(fields.get(name, ""))
        if megabytes is not None and megabytes < _LITTLE_MEGABYTES:
            yield warn(
                CONFIGURATION,
                f"A job that does not say gets {megabytes} MB per {per} ({name}), too little for most analyses.",
                "Set `mem` in [slurm.options], for example `mem = 8G`.",
            )


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^| )([A-Za-z]+)=(\S*)", line))


def _number(text: str) -> int | None:
    """The leading number of `300 sec`, `10000`; None for UNLIMITED and the like."""
    found = re.match(r"[0-9]{1,18}", text)
    return int(found[0]) if found else None


def _words(result: CommandResult) -> str:
    lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    return " ".join(lines[:3]).rstrip(".") or f"nothing (exit code {result.returncode})"
