"""The Unix users that the mapping of users names: whether jobs may, and can, run as them."""

from __future__ import annotations

import contextlib
import secrets
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError, CommandNotFound
from girder_worker_slurm.cluster.interface import Submission
from girder_worker_slurm.cluster.run_as import own_name, sudo_refusal, uid_of
from girder_worker_slurm.cluster.slurm_commands import (
    FINAL_STATES,
    admin_level_arguments,
    hides_jobs_of_others,
    is_operator,
    parse_configuration,
)
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.errors import SlurmWorkerError, UserRefused
from girder_worker_slurm.users.mapping_file import read_mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.cluster.interface import Cluster, QueueRow
    from girder_worker_slurm.cluster.run_as import RunAs
    from girder_worker_slurm.cluster.user_run_files import UserRunFiles
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.doctor.slurm import SlurmQuestions
    from girder_worker_slurm.settings import Settings
    from girder_worker_slurm.users.unix_users import UnixUserRules

CHECK = "Unix users"
_PAGE = "docs/howto/users.md"
_LOOK_SECONDS = 0.2
_ASK_SLURM_SECONDS = 2.0
#: Looks whether the node has the user's directory, closed to others, and says so where the worker looks for it.
_SCRIPT = """\
#!/bin/bash
umask 077
run={run}
mode=$(stat -c %a -- "$run") || exit 66
nonce=$(cat -- "$run/nonce") || exit 66
printf '{{"token":"%s","nonce":"%s","kind":"seen","slurm_job_id":"%s","mode":"%s","user":"%s"}}\\n' \\
  {token} "$nonce" "$SLURM_JOB_ID" "$mode" "$(id -un)" >{spool}/.{token} &&
  mv -- {spool}/.{token} {spool}/{token}.seen.json
"""


@dataclass(frozen=True)
class UnixUserSite:
    """What is looked at, and through what."""

    settings: Settings
    rules: UnixUserRules
    runs_as: Callable[[str], UserRunFiles]
    run_as: RunAs
    slurm: SlurmQuestions
    cluster: Cluster
    clock: Clock
    slurm_options: tuple[tuple[str, str], ...]
    timeout_seconds: float = 120.0
    with_probe: bool = True


def check_unix_users(site: UnixUserSite) -> Iterator[Finding]:
    """All that has to be so for each of them; nothing where the mapping names none."""
    users = [
        user
        for user in read_mapping(site.settings.users.mapping_file, site.settings.users.unmapped).unix_users
        if user != own_name()
    ]
    if not users:
        return
    yield from _check_privacy(site)
    for user in users:
        findings = list(_check_user(site, user))
        yield from findings or [ok(CHECK, f"Jobs can run as {user}.")]


def _check_privacy(site: UnixUserSite) -> Iterator[Finding]:
    """Whether Slurm shows the worker the jobs of others; without that it submits none."""
    if site.run_as.is_root:
        return
    try:
        configuration = parse_configuration(site.slurm.ask("scontrol", "show", "config").stdout)
        if not hides_jobs_of_others(configuration, own_name()):
            return
        with contextlib.suppress(CommandNotFound):
            if is_operator(site.slurm.ask(*admin_level_arguments(own_name())).stdout):
                return
    except CommandError:
        return
    yield fail(
        CHECK,
        "Slurm shows jobs to their own user only (PrivateData=jobs), so that the worker cannot follow those of others and"
        " submits none.",
        f"Make {own_name()} an operator: sacctmgr modify user {own_name()} set adminlevel=operator.",
    )


def _check_user(site: UnixUserSite, user: str) -> Iterator[Finding]:
    try:
        site.rules.check(user, uid_of(user))
    except UserRefused as error:
        yield fail(CHECK, str(error), "Correct the mapping, or `unix_users` in [users].")
        return
    try:
        runs = site.runs_as(user)
        runs.prepare()
    except OSError as error:
        yield fail(CHECK, f"{error}", f"{_sudoers(site, user)} See {_PAGE}.")
        return
    sif = site.settings.sif_image_path
    if sif.is_dir() and not runs.can_enter(sif):
        yield fail(
            CHECK,
            f"{user} cannot read the SIFs in {sif}.",
            f"Let others enter it and what is above it: chmod o+rx {sif}. Its SIFs are readable as they are.",
        )
    refusals = [said for name in ("sbatch", "scancel") if (said := _refusal(site, user, name))]
    for said in refusals:
        yield fail(CHECK, said, f"{_sudoers(site, user)} See {_PAGE}.")
    if site.with_probe and not refusals:
        yield from _Probe(site, user, runs).run()


def _refusal(site: UnixUserSite, user: str, name: str) -> str:
    """Why a command cannot be run as this user; empty if it can."""
    try:
        result = site.slurm.ask(name, "--version", run_as=site.run_as, user=user)
    except CommandError as error:
        return str(error)
    if result.returncode == 0:
        return ""
    words = sudo_refusal(result.stderr) or result.stderr.strip()[-300:] or f"exit code {result.returncode}"
    return f"{name} cannot be run as {user}: {words}"


def _sudoers(site: UnixUserSite, user: str) -> str:
    if site.run_as.is_root:
        return "The worker is root and needs no sudo; mend what is said here."
    commands = ", ".join((*(site.slurm.where(name) for name in ("sbatch", "scancel")), _program(site)))
    return f"In sudoers: {own_name()} ALL=({user}) NOPASSWD:SETENV: {commands}"


def _program(site: UnixUserSite) -> str:
    return site.settings.users.files_program or "<the worker's environment>/bin/girder-slurm-files"


class _Probe:
    """A small job as the user, who looks at their run root from a node."""

    def __init__(self, site: UnixUserSite, user: str, runs: UserRunFiles) -> None:
        self._site = site
        self._user = user
        self._runs = runs
        self._token = f"gw-doctor-{secrets.token_hex(8)}"
        self._is_over = True

    def run(self) -> Iterator[Finding]:
        """Submits, waits, and leaves nothing behind."""
        try:
            yield from self._run()
        except (SlurmWorkerError, OSError) as error:
            yield fail(CHECK, f"A job of {self._user}: {error}", f"See {_PAGE}.")
        finally:
            if not self._is_over:
                with contextlib.suppress(SlurmWorkerError):
                    self._site.cluster.cancel([self._token], unix_user=self._user)
            with contextlib.suppress(OSError):
                self._runs.remove(self._token)

    def _run(self) -> Iterator[Finding]:
        run, nonce = self._runs.create(self._token), secrets.token_hex(8)
        self._runs.write(self._token, "nonce", nonce.encode())
        script = _SCRIPT.format(
            run=shlex.quote(str(run)), spool=shlex.quote(str(self._runs.spool)), token=self._token
        )
        self._runs.write(self._token, "job.slurm", script.encode(), mode=0o700)
        submission = Submission(
            self._token, run / "job.slurm", run / "slurm.out", self._site.slurm_options, self._user
        )
        self._is_over = False
        self._site.cluster.submit(submission)
        ask_at = self._site.clock.monotonic() + _ASK_SLURM_SECONDS
        give_up_at = self._site.clock.monotonic() + self._site.timeout_seconds
        while self._site.clock.monotonic() < give_up_at:
            for event in self._runs.events(lambda token: token == self._token):
                self._runs.keep(event)
                self._is_over = True
                if event.nonce != nonce or event.fields.get("user") != self._user:
                    yield fail(CHECK, f"The job of {self._user} ran as another.", f"See {_PAGE}.")
                return
            rows: tuple[QueueRow, ...] = ()
            if self._site.clock.monotonic() >= ask_at:
                ask_at = self._site.clock.monotonic() + _ASK_SLURM_SECONDS
                rows = self._site.cluster.find(self._token, self._user)
            if rows and rows[0].state in FINAL_STATES and not self._runs.events(self._token.__eq__):
                self._is_over = True
                said = self._runs.read_at(run / "slurm.out", 0, 1000).decode(errors="replace").strip()
                yield fail(
                    CHECK,
                    f"The nodes do not see {run.parent} as the worker does: the job of {self._user} ended without a word"
                    f" ({rows[0].state}). {said}".strip(),
                    "Set `run_root` in [users] to a directory on a file system that worker and nodes share.",
                )
                return
            self._site.clock.sleep(_LOOK_SECONDS)
        yield warn(
            CHECK,
            f"The job of {self._user} did not start within {self._site.timeout_seconds:.0f} s.",
            "Look at the queue, and try again when there is room.",
        )
