"""Jobs that run as other Unix users than the worker: theirs alone to read, and followed like any other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.interface import Submission
from girder_worker_slurm.cluster.run_as import RunAs
from girder_worker_slurm.cluster.runs_of_users import RunsOfUsers
from tests.support.accounting_cluster import AccountingCluster
from tests.support.girder_site import CANCELED, ERROR, wait_until
from tests.support.run_files_suite import *  # noqa: F403 - the suite, here between real users
from tests.support.run_files_suite import NO_CHECK, Lab
from tests.support.unix_users import PROGRAM, UnixUsers
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site
    from tests.support.stack import Stack

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

_MAPPING = """\
users:
- login: [{ada}, {alice}]
  unix_user: {users.ada}
- login: {bob}
  unix_user: {users.bob}
- login: {eve}
  unix_user: {users.eve}
- login: {mallory}
  unix_user: nobody
- login: {walter}
"""
_PEOPLE = ("ada", "alice", "bob", "eve", "mallory", "walter")


@pytest.fixture(scope="module")
def users(stack: Stack) -> Iterator[UnixUsers]:
    """Unix users of this module's own."""
    with UnixUsers(stack) as users:
        yield users


@pytest.fixture(params=["setpriv", "sudo"])
def lab(request: pytest.FixtureRequest, users: UnixUsers, tmp_path: Path) -> Iterator[Lab]:
    """The run files of a user, reached from another one in both ways."""
    made = RunsOfUsers(
        users.run_root,
        program=str(PROGRAM),
        transfers=tmp_path,
        run_as=RunAs(is_root=request.param == "setpriv"),
        environment=os.environ,
        clock=SystemClock(),
    )
    runs = made(users.ada)
    runs.prepare()
    yield Lab(runs, lambda line: users.run_as(users.ada, line), Path(f"/home/{users.ada}"))
    made.close()


class Crew:
    """People in Girder, and a worker with the mapping of them."""

    def __init__(self, site: Site, users: UnixUsers) -> None:
        self.site = site
        self.users = users
        # A login has no underscore, which the names of temporary directories may have.
        suffix = uuid.uuid4().hex[:6]
        self.people = {name: site.girder.new_user(f"{name}{suffix}") for name in _PEOPLE}
        mapping = users.base / "users.yaml"
        names = {name: person.name for name, person in self.people.items()}
        mapping.write_text(_MAPPING.format(users=users, **names), encoding="utf-8")
        mapping.chmod(0o644)
        root = site.stack.shared / users.base.name
        self.worker = Worker(site.stack, root, users.sif)
        self.worker.extra_config = (
            f"[users]\nmapping_file = {mapping}\nunix_users = gw*\nrun_root = {users.run_root}\n"
        )

    def run(self, name: str, folder: str, **parameters: object) -> str:
        """A job of this person on a small file with their name in it."""
        girder = self.people[name]
        file = girder.upload(folder, "in.txt", f"{name}'s\n".encode())
        return girder.run(
            self.site.toy, inputFile=file, outputFile="out.txt", outputFile_folder=folder, **parameters
        )

    def unix_user_in_slurm(self, job: str) -> str:
        """Whose job Slurm says it is."""
        number = self.worker.slurm_job_id(job)
        shown = self.site.slurm("scontrol", "--oneliner", "show", "job", number, as_root=True)
        found = re.search(r"UserId=([^(]+)\((\d+)\) GroupId=([^(]+)", shown)
        assert found is not None, shown
        assert found[1] == found[3]
        return found[1]


@pytest.fixture(scope="module")
def crew_of_module(shared_site: Site, users: UnixUsers) -> Iterator[Crew]:
    """The people and their worker, which is the only one meanwhile."""
    shared_site.worker.stop()
    crew = Crew(shared_site, users)
    yield crew
    crew.worker.stop()
    for path in shared_site.stack.shared.glob(f"{crew.worker.root.name}*"):
        subprocess.run(["rm", "-rf", str(path)], check=False, timeout=60)


@pytest.fixture
def crew(crew_of_module: Crew) -> Crew:
    """The crew with its worker running."""
    if not crew_of_module.worker.is_running:
        crew_of_module.site.worker.stop()
        crew_of_module.worker.start()
    return crew_of_module


def test_nothing_of_a_user_is_another_users_to_read(users: UnixUsers, tmp_path: Path) -> None:
    made = RunsOfUsers(
        users.run_root,
        program=str(PROGRAM),
        transfers=tmp_path,
        run_as=RunAs(is_root=True),
        environment=os.environ,
        clock=SystemClock(),
    )
    runs = made(users.ada)
    run = runs.create("gw-private")
    runs.write("gw-private", "nonce", b"secret")
    for other in (users.bob, users.stack.user):
        for line in (
            f"ls {run.parent.parent}",
            f"cat {run}/nonce",
            f"ls {runs.spool}",
            f"touch {runs.spool}/x",
        ):
            assert "Permission denied" in users.run_as(other, line, check=False)
    # Who was there first with a directory of that name is told, not obeyed.
    taken = users.root_of(users.bob)
    users.run_as(users.ada, f"mkdir {taken}")
    try:
        with pytest.raises(OSError, match="belongs to another user"):
            made(users.bob).prepare()
    finally:
        users.run_as(users.ada, f"rmdir {taken}")
        runs.remove("gw-private")
        made.close()


def test_a_program_that_was_killed_is_started_again_at_the_next_question(lab: Lab, users: UnixUsers) -> None:
    token = lab.token()
    users.run_as(users.ada, "pkill -KILL -u $(id -u) -f girder-slurm-files")
    assert lab.runs.claim(token, "after its death")
    assert lab.runs.outputs_place(token, NO_CHECK).is_dir()


def test_a_worker_that_is_root_submits_and_cancels_as_the_user_without_sudo(
    stack: Stack, users: UnixUsers, tmp_path: Path
) -> None:
    clock, run_as, environment = SystemClock(), RunAs(is_root=True), stack.user_environment()
    made = RunsOfUsers(
        users.run_root,
        program=str(PROGRAM),
        transfers=tmp_path,
        run_as=run_as,
        environment=environment,
        clock=clock,
    )
    options = CommandOptions(user="root", environment=environment, other_users=made.users)
    cluster = CommandCluster(LocalCommandRunner(), clock, CallBudget(50.0, clock), options, run_as)
    runs = made(users.bob)
    token = f"gw-root-{users.bob}"
    run = runs.create(token)
    runs.write(token, "job.slurm", b"#!/bin/bash\nid -un; id -gn; echo $HOME; sleep 600\n", mode=0o700)
    number = cluster.submit(
        Submission(token, run / "job.slurm", run / "slurm.out", (("mem", "50M"),), unix_user=users.bob)
    )
    try:
        wait_until("it has said who it is", lambda: len(runs.read_at(run / "slurm.out", 0, 200).split()) == 3)
        out = runs.read_at(run / "slurm.out", 0, 200).decode()
        assert out.split() == [users.bob, users.bob, f"/home/{users.bob}"]
        assert [row.slurm_job_id for row in cluster.find(token, users.bob)] == [number]
        assert [row.unix_user for row in cluster.snapshot().rows if row.token == token] == [users.bob]
        assert cluster.find(token) == cluster.find(token, users.eve) == ()
        cluster.cancel([token], unix_user=users.eve)
        assert [row.state for row in cluster.find(token, users.bob)] == ["RUNNING"]
    finally:
        cluster.cancel([token], unix_user=users.bob)
    wait_until("it is cancelled", lambda: cluster.find(token, users.bob)[0].state == "CANCELLED")
    runs.remove(token)
    made.close()


def test_jobs_run_as_the_unix_users_of_the_mapping(crew: Crew) -> None:
    folders = {name: crew.people[name].new_folder() for name in ("ada", "bob", "walter")}
    jobs = {name: crew.run(name, folder, text="hello", lines=3) for name, folder in folders.items()}
    for name, job in jobs.items():
        log = crew.people[name].log_at_end(job)
        assert "line 3" in log
        assert log.count("toy starts") == 1
        assert crew.people[name].files(folders[name])["out.txt"] == f"text=<hello>\ninput={name}'s\n".encode()
    users = crew.users
    seen = {name: crew.unix_user_in_slurm(job) for name, job in jobs.items()}
    assert seen == {"ada": users.ada, "bob": users.bob, "walter": users.stack.user}

    shown = json.loads(crew.worker.attempt("show", "--json", jobs["ada"]).stdout)
    assert shown["unix_user"] == users.ada
    run = Path(shown["run_directory"])
    assert run.parent == users.root_of(users.ada) / "run"
    # When it has ended, log and script stay, and nothing that is secret; all of it is the user's alone.
    wait_until("it is cleaned", lambda: not {"nonce", "arguments", "volume"} & set(os.listdir(run)))
    assert {"job.slurm", "output.log"} <= set(os.listdir(run))
    for path in (users.root_of(users.ada), run, run / "output.log"):
        assert path.owner() == users.ada
    assert "Permission denied" in users.run_as(users.bob, f"ls {run}", check=False)
    assert not list((crew.worker.root / "tmp" / "transfers").iterdir())
    assert "line 3" in crew.worker.attempt("log", jobs["ada"]).stdout


def test_a_cancel_reaches_the_job_of_another_user(crew: Crew) -> None:
    ada = crew.people["ada"]
    job = crew.run("ada", ada.new_folder(), sleep=120)
    wait_until("it runs", lambda: "second 1" in ada.log(job), seconds=60)
    ada.cancel(job)
    ada.log_at_end(job, CANCELED)
    number = crew.worker.slurm_job_id(job)
    wait_until(
        "the Slurm job is gone", lambda: crew.site.slurm_state(number) in ("", "CANCELLED", "COMPLETED")
    )


def test_jobs_of_several_users_go_on_after_a_crash_of_the_worker(crew: Crew) -> None:
    folders = {name: crew.people[name].new_folder() for name in ("ada", "bob")}
    jobs = {name: crew.run(name, folder, sleep=4, text="x") for name, folder in folders.items()}
    for name, job in jobs.items():
        wait_until("it runs", lambda name=name, job=job: "second 1" in crew.people[name].log(job), seconds=60)
    nonces = [
        entry["nonce"] for job in jobs.values() for entry in crew.worker.entries_of(job) if "nonce" in entry
    ]
    assert len(nonces) == 2
    assert not [
        words for words in _command_lines() if any(nonce in word for nonce in nonces for word in words)
    ]
    crew.worker.kill()
    crew.worker.start()
    for name, job in jobs.items():
        log = crew.people[name].log_at_end(job)
        assert log.count("toy starts") == 1, log
        assert log.count("toy ends") == 1, log
        assert crew.people[name].files(folders[name])["out.txt"] == f"text=<x>\ninput={name}'s\n".encode()
    # The programs of the worker that died end by themselves.
    wait_until("two programs are left for each user", lambda: _programs(crew.users) <= 4)


@pytest.mark.fault("Slurm hides the jobs of others (PrivateData)", phases=("running",))
def test_what_slurm_hides_from_the_worker_is_not_submitted_and_not_taken_for_gone(crew: Crew) -> None:
    stack, ada = crew.site.stack, crew.people["ada"]
    with AccountingCluster(stack, more=("PrivateData=jobs",)) as cluster:
        cluster.sacctmgr("add", "account", "all", "cluster=valhalla")
        for user in (stack.user, crew.users.ada):
            cluster.sacctmgr("add", "user", f"names={user}", "account=all", "cluster=valhalla")
        crew.worker.restart(crew.worker.extra_config, **cluster.environment)
        try:
            folder = ada.new_folder()
            refused = ada.log_at_end(crew.run("ada", folder), ERROR)
            assert f"make {stack.user} an operator" in refused
            assert not cluster.run("squeue", "--noheader", "--states=all", user=False).strip()
            assert (
                "FAIL  Unix users: Slurm shows jobs to their own user only"
                in crew.worker.attempt("doctor", "--no-probe").stdout
            )

            cluster.sacctmgr("modify", "user", stack.user, "set", "adminlevel=Operator")
            job = crew.run("ada", folder, sleep=20, text="x")
            wait_until("it runs", lambda: "second 1" in ada.log(job), seconds=60)
            cluster.sacctmgr("modify", "user", stack.user, "set", "adminlevel=None")
            crew.worker.kill()
            crew.worker.start()
            log = ada.log_at_end(job)
            assert (log.count("toy starts"), log.count("toy ends")) == (1, 1), log
            assert ada.files(folder)["out.txt"] == b"text=<x>\ninput=ada's\n"
        finally:
            crew.worker.stop()
            crew.worker.environment = {}


def test_who_may_not_be_run_as_is_refused_before_inputs_are_fetched(crew: Crew) -> None:
    mallory, eve = crew.people["mallory"], crew.people["eve"]
    jobs = {name: crew.run(name, crew.people[name].new_folder()) for name in ("mallory", "eve")}
    # The site's list does not have this one ...
    assert "`unix_users` in [users] does not have them" in mallory.log_at_end(jobs["mallory"], ERROR)
    # ... and of this one sudo says so.
    said = eve.log_at_end(jobs["eve"], ERROR)
    assert re.search(rf"is to run as the Unix user {crew.users.eve}, and cannot: .*sudo: ", said)
    for job in jobs.values():
        events = [entry["event"] for entry in crew.worker.entries_of(job)]
        assert events[:3] == ["accepted", "admitted", "verdict"]


def test_the_doctor_says_who_can_be_run_as_and_what_is_missing(crew: Crew) -> None:
    said = crew.worker.attempt("doctor", "--timeout", "60").stdout
    for user in (crew.users.ada, crew.users.bob):
        assert f"Unix users: Jobs can run as {user}." in said
    assert "By the site's mapping of users this job is to run as the Unix user nobody" in said
    assert f"girder-slurm-files cannot be run as {crew.users.eve}: sudo: " in said
    assert f"In sudoers: {crew.users.stack.user} ALL=({crew.users.eve}) NOPASSWD:SETENV: /" in said


def _programs(users: UnixUsers) -> int:
    """How many `girder-slurm-files` run for these users; each a script of Python, whose second word it is."""
    return sum(
        len(words) > 2 and Path(words[1]).name == PROGRAM.name and words[2].startswith(str(users.base))
        for words in _command_lines()
    )


def _command_lines() -> list[list[str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(os.fsdecode(path.read_bytes()).split("\0"))
    return found
