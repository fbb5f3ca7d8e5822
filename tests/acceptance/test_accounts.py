"""Girder's users and Slurm's accounts: a mapping of users on a cluster that enforces associations and limits."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_slurm.girder.users import GirderUsers
from girder_worker_slurm.job.state import GirderJob, GirderUser
from tests.support.accounting_cluster import AccountingCluster
from tests.support.girder_site import CANCELED, ERROR, QUEUED, GirderSite, wait_until
from tests.support.toy_cli import push_toy_cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.acceptance.conftest import Site
    from tests.support.stack import Stack

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

_MAPPING = """\
users:
- login: {kirby}
  account: nintendo
  qos: high
  partition: long
- login: {mario}
  account: nintendo
- login: {dovahkiin}
  account: pc
"""
_NEW_TOKENS = (
    "import sys; from girder.models.user import User; from girder.models.token import Token;"
    "user = User().findOne({'login': sys.argv[1]});"
    "print(*(Token().createToken(user=user, scope=scope.split(','))['_id'] for scope in sys.argv[2:]))"
)
_HIDE = (
    "import sys; from girder.models.user import User;"
    "user = User().findOne({'login': sys.argv[1]}); User().setPublic(user, False, save=True)"
)


@pytest.fixture(scope="module")
def cluster(stack: Stack) -> Iterator[AccountingCluster]:
    """A cluster where the worker's account is in nintendo, and not in pc."""
    with AccountingCluster(stack) as cluster:
        cluster.sacctmgr("add", "qos", "high")
        cluster.sacctmgr("add", "account", "nintendo", "cluster=valhalla")
        cluster.sacctmgr("add", "account", "pc", "cluster=valhalla")
        cluster.sacctmgr(
            "add", "user", f"names={stack.user}", "account=nintendo", "cluster=valhalla", "qos=normal,high"
        )
        yield cluster


def _start(site: Site, cluster: AccountingCluster, directory: Path, mapping: str, more: str = "") -> None:
    site.worker.stop()
    file = directory / f"{uuid.uuid4().hex[:8]}.yaml"
    file.write_text(mapping, encoding="utf-8")
    directory.chmod(0o755)
    site.worker.extra_config = f"[users]\nmapping_file = {file}\n{more}"
    site.worker.environment = cluster.environment
    site.worker.start()


@pytest.fixture
def readable(site: Site) -> Iterator[Path]:
    """A directory that the worker can read."""
    path = site.stack.shared / f"mapping-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def _new_user(site: Site, name: str) -> GirderSite:
    return site.girder.new_user(f"{name}{uuid.uuid4().hex[:8]}")


def _run(site: Site, girder: GirderSite, cli: str = "") -> str:
    folder = girder.new_folder()
    file = girder.upload(folder, "in.txt", b"hello\n")
    return girder.run(cli or site.toy, inputFile=file, outputFile="o.txt", outputFile_folder=folder)


def _in_slurm(site: Site, cluster: AccountingCluster, job: str) -> Mapping[str, str]:
    shown = cluster.run("scontrol", "--oneliner", "show", "job", site.worker.slurm_job_id(job))
    return dict(re.findall(r"(\w+)=(\S+)", shown))


def test_jobs_run_under_the_account_and_qos_of_their_user(
    site: Site, cluster: AccountingCluster, readable: Path
) -> None:
    people = {name: _new_user(site, name) for name in ("kirby", "mario", "dovahkiin", "luigi")}
    _start(site, cluster, readable, _MAPPING.format(**{name: user.name for name, user in people.items()}))
    jobs = {name: _run(site, user) for name, user in people.items()}

    people["kirby"].log_at_end(jobs["kirby"])
    people["mario"].log_at_end(jobs["mario"])
    kirby, mario = (_in_slurm(site, cluster, jobs[name]) for name in ("kirby", "mario"))
    assert (kirby["Account"], kirby["QOS"], kirby["Partition"]) == ("nintendo", "high", "long")
    assert (mario["Account"], mario["QOS"], mario["Partition"]) == ("nintendo", "normal", "normal")
    number = site.worker.slurm_job_id(jobs["kirby"])
    wait_until(
        "the job is in the accounts",
        lambda: (
            cluster.run("sacct", "-nPX", "-j", number, "-o", "account,partition,state").strip()
            == "nintendo|long|COMPLETED"
        ),
    )
    explained = site.worker.command("explain", jobs["kirby"])
    assert f"Girder user: {people['kirby'].name}" in explained
    assert re.search(rf"--qos=high +The mapping of users, login {people['kirby'].name}", explained)

    # Slurm's own words, where the account exists and the worker's is not in it.
    assert "Invalid account or account/partition combination" in people["dovahkiin"].log_at_end(
        jobs["dovahkiin"], ERROR
    )
    # Whom nobody mapped, Slurm never hears of.
    refused = people["luigi"].log_at_end(jobs["luigi"], ERROR)
    assert f"The Girder user {people['luigi'].name} may not run jobs here" in refused
    assert [entry["event"] for entry in site.worker.entries_of(jobs["luigi"])][:3] == [
        "accepted",
        "admitted",
        "verdict",
    ]


def test_a_limit_of_a_group_holds_for_its_members(
    site: Site, cluster: AccountingCluster, readable: Path
) -> None:
    # The image asks for more than the group may have; it needs the worker without a mapping to be ingested.
    image = push_toy_cli(
        site.stack["DEVSTACK_REGISTRY"], f"tests/large:{uuid.uuid4().hex[:6]}", labels={"slurm.mem": "300"}
    )
    site.girder.ingest(image)
    large = site.girder.cli(image, "Toy")
    student, teacher = _new_user(site, "student"), _new_user(site, "teacher")
    group = f"Students {uuid.uuid4().hex[:8]}"
    student.call("POST", "group", params={"name": group, "public": "true"})
    mapping = (
        f"users:\n- login: [{student.name}, {teacher.name}]\n  account: nintendo\n"
        f"- group: {group}\n  limits: {{mem: 200M}}\n"
    )
    _start(site, cluster, readable, mapping)
    silent = student.log_at_end(_run(site, student), ERROR)
    assert "Girder does not tell the e-mail address and the groups" in silent
    assert (
        "GIRDER_WORKER_JOB_GC_SCOPE=core.user_info.read" in site.worker.attempt("doctor", "--no-probe").stdout
    )

    site.worker.stop()
    jobs = {name: _run(site, user, large) for name, user in (("student", student), ("teacher", teacher))}
    small = _run(site, student)
    site.girder.tell_groups()
    site.worker.start()
    assert "300 MiB of memory, more than the 200 that one job may have here" in student.log_at_end(
        jobs["student"], ERROR
    )
    student.log_at_end(small)
    teacher.log_at_end(jobs["teacher"])
    assert _in_slurm(site, cluster, jobs["teacher"])["MinMemoryNode"] == "300M"
    assert "Girder tells e-mail addresses and groups" in site.worker.attempt("doctor", "--no-probe").stdout


def test_girder_tells_e_mail_and_groups_to_a_token_with_the_scope_for_it(site: Site) -> None:
    user = _new_user(site, "zelda")
    public, private = (f"{name} {uuid.uuid4().hex[:8]}" for name in ("Public", "Private"))
    groups = [
        user.call("POST", "group", params={"name": name, "public": name == public})["_id"]
        for name in (public, private)
    ]
    me = user.call("GET", "user/me")
    client, plain, told = site.girder.inside(
        _NEW_TOKENS, user.name, "jobs.rest.create_job", "core.data.read", "core.data.read,core.user_info.read"
    )
    job, message = (
        GirderJob(f"{user.api}/job/x", ""),
        {"task_id": "t", "headers": {"girder_client_token": client}},
    )
    users = GirderUsers(SystemClock(), with_profile=True, with_group_names=True)
    assert users.user_of(job, message, [plain]) == GirderUser(me["_id"], user.name)
    assert users.user_of(job, message, [plain, told]) == GirderUser(
        me["_id"], user.name, f"{user.name}@example.org", dict(zip(groups, (public, ""), strict=True))
    )


def test_a_user_with_a_private_account_has_an_id_and_no_login(site: Site) -> None:
    user = _new_user(site, "private")
    site.girder.inside(_HIDE, user.name)
    me = user.call("GET", "user/me")
    (client,) = site.girder.inside(_NEW_TOKENS, user.name, "jobs.rest.create_job")
    message = {"task_id": "t", "headers": {"girder_client_token": client}}
    assert GirderUsers(SystemClock()).user_of(GirderJob(f"{user.api}/job/x", ""), message) == GirderUser(
        me["_id"]
    )


def test_what_the_nodes_do_not_count_slurm_s_accounting_is_asked_for(
    site: Site, cluster: AccountingCluster, folder: str
) -> None:
    site.worker.restart(**cluster.environment)
    job = site.run_toy(folder, sleep=3)
    log = site.girder.log_at_end(job)
    # No control group is this job's own here.
    assert "of memory" not in log
    wait_until("the accounting", lambda: "By Slurm's accounts" in site.girder.log(job), seconds=90)
    line = site.girder.log(job).splitlines()[-1]
    assert re.fullmatch(
        r"By Slurm's accounts it used \d+ MiB of memory at most and \d+ s of processor time; ran \d+ s on acct\d+\.",
        line,
    ), line
    assert line in site.worker.command("show", job)
    assert site.girder.log(job).count("By Slurm's accounts") == 1


@pytest.mark.fault("slurmdbd stopped", phases=("submitted", "pending", "running", "ended"))
def test_jobs_begin_and_end_without_slurmdbd_and_its_accounts_are_asked_for_again(
    site: Site, cluster: AccountingCluster, folder: str
) -> None:
    site.worker.restart(**cluster.environment)
    before = site.worker.log.stat().st_size
    running = site.run_toy(folder, sleep=5)
    wait_until("it runs", lambda: "toy starts" in site.girder.log(running), seconds=40)
    with cluster.without_slurmdbd():
        later = site.run_toy(folder, sleep=2)
        for job in (running, later):
            log = site.girder.log_at_end(job)
            assert (log.count("toy starts"), log.count("toy ends")) == (1, 1), log
        wait_until(
            "the accounting was asked in vain",
            lambda: b"Slurm's accounting did not answer" in site.worker.log.read_bytes()[before:],
            seconds=30,
        )
    # It is asked once a minute: that it answers then, test_accounting.py shows.
    assert b"has no accounting" not in site.worker.log.read_bytes()[before:]


def test_a_job_that_asks_for_memory_runs_where_slurm_counts_none(
    site: Site, stack: Stack, folder: str
) -> None:
    with AccountingCluster(stack, counts_memory=False) as cluster:
        cluster.sacctmgr("add", "account", "all", "cluster=valhalla")
        cluster.sacctmgr("add", "user", f"names={stack.user}", "account=all", "cluster=valhalla")
        # What the worker's `mem = 150` would come to there.
        with pytest.raises(AssertionError, match="Memory specification can not be satisfied"):
            cluster.run("sbatch", "--mem=150", "--wrap=true")
        site.worker.restart(**cluster.environment)
        log = site.girder.log_at_end(site.run_toy(folder))
        assert "Slurm counts no memory on this cluster: mem=150 is left out." in log
        doctor = site.worker.attempt("doctor", "--no-probe").stdout
        assert (
            "warn  memory of the nodes: slurm.conf does not say how much the nodes of normal have" in doctor
        ), doctor
        site.worker.stop()


@pytest.mark.parametrize(
    ("whose", "setting", "words"),
    [
        ("user", "maxsubmitjobs", "AssocMaxSubmitJobLimit"),
        ("account", "grpsubmitjobs", "AssocGrpSubmitJobsLimit"),
    ],
)
def test_slurm_s_limit_of_submitted_jobs_is_waited_out(
    site: Site, cluster: AccountingCluster, readable: Path, whose: str, setting: str, words: str
) -> None:
    names = f"names={site.stack.user if whose == 'user' else 'nintendo'}"
    user = _new_user(site, f"peach-{whose}")
    folder = user.new_folder()
    file = user.upload(folder, "in.txt", b"hello\n")
    cluster.sacctmgr("modify", whose, names, "set", f"{setting}=1")
    try:
        _start(site, cluster, readable, f"users:\n- login: {user.name}\n  account: nintendo\n")
        first = user.run(site.toy, inputFile=file, outputFile="1.txt", outputFile_folder=folder, sleep=12)
        wait_until("it runs", lambda: "toy starts" in user.log(first), seconds=30)
        second, third = _run(site, user), _run(site, user)
        for job in (second, third):
            wait_until(
                "Slurm's own words are shown",
                lambda job=job: words in str(user.job(job)["progress"]),
                seconds=30,
            )
            assert user.status(job) == QUEUED
        user.cancel(third)
        assert user.wait_for_end(third)["status"] == CANCELED
        user.log_at_end(first)
        user.log_at_end(second)
    finally:
        cluster.sacctmgr("modify", whose, names, "set", f"{setting}=-1")
    assert site.worker.slurm_job_id(third) == ""
    # One asks again for all, with growing pauses: no more than a handful of intents in these seconds.
    tried = sum(entry["event"] == "lost" for job in (second, third) for entry in site.worker.entries_of(job))
    assert 1 <= tried <= 10
