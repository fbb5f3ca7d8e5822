"""Real services fail under real jobs: each runs once, its output comes once, and the log has each line once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection, Producer

from tests.support.girder_site import SUCCESS, wait_until
from tests.support.moody_girder import moody_girder
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site
    from tests.support.moody_girder import MoodyGirder

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]

_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")


def _expect_each_once(site: Site, folder: str, jobs: list[str], *, attempts: int = 1) -> None:
    """Nothing lost, nothing doubled, nothing called a success that was none."""
    for job in jobs:
        ended = site.girder.wait_for_end(job, seconds=120)
        log = "".join(ended["log"])
        assert ended["status"] == SUCCESS, log
        # A job that Slurm loses in a crash is run again, and its log begins anew.
        last = log.rpartition("It is submitted anew")[2] if attempts > 1 else log
        assert (last.count("toy starts"), last.count("toy ends")) == (1, 1), log
        assert last.count("second 1\n") == 1, log
        assert log.count("toy ends") == 1, log
        entries = site.worker.entries_of(job)
        assert len({entry["token"] for entry in entries if entry["event"] == "attempt"}) <= attempts
        assert 1 <= len([entry for entry in entries if entry["event"] == "started"]) <= attempts
    outputs = [name for name in site.girder.files(folder) if name.startswith("out.txt")]
    assert len(outputs) == len(jobs)


def _runs(site: Site, job: str) -> None:
    wait_until("it runs", lambda: "second 1\n" in site.girder.log(job), seconds=40)


def _has(site: Site, event: str) -> bool:
    for path in site.worker.root.glob("record/[!.]*/state.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            if f'"event": "{event}"' in path.read_text(encoding="utf-8"):
                return True
    return False


@pytest.mark.fault(
    "worker stopped (SIGTERM)",
    phases=(
        "intent written",
        "sbatch in flight",
        "submitted",
        "running",
        "outputs uploading",
    ),
)
def test_a_worker_that_is_stopped_again_and_again_goes_on_where_it_was(site: Site, folder: str) -> None:
    jobs = []
    for event in ("intent", "upload"):
        jobs += [site.run_toy(folder, sleep=1) for _ in range(2)]
        wait_until(
            f"a job has come to {event}", lambda event=event: _has(site, event), seconds=40, every=0.01
        )
        assert site.worker.stop() < 20
        site.worker.start()
    _expect_each_once(site, folder, jobs)


@pytest.mark.fault("many output files, and the worker killed among them", phases=("outputs uploading",))
def test_a_worker_that_is_killed_among_many_uploads_brings_each_file_once(site: Site, folder: str) -> None:
    number = 120
    file = site.girder.upload(folder, "in.txt", b"1\n")
    target = site.girder.new_folder()
    params = {"first": file, "second": file, "outputDir": "parts", "outputDir_folder": target}
    job = site.girder.run(site.sum, count=number, **params)
    wait_until("some are uploaded", lambda: _uploads(site, job) >= number / 3, seconds=60, every=0.02)
    site.worker.kill()
    assert _uploads(site, job) < number
    site.worker.start()
    ended = site.girder.wait_for_end(job, seconds=90)
    assert ended["status"] == SUCCESS, ended["log"]
    found = site.girder.files(target)
    parts = {name.rpartition("/")[2]: data for name, data in found.items() if "part-" in name}
    assert parts == {f"part-{n}.txt": f"part {n}\n".encode() for n in range(1, number + 1)}
    assert len(found) == number + 3


def _uploads(site: Site, job: str) -> int:
    return sum(entry["event"] == "uploaded" for entry in site.worker.entries_of(job))


@pytest.mark.fault("log of 2 GB in one line", phases=("running",))
def test_a_log_that_is_one_endless_line_is_cut_and_the_job_ends_well(site: Site, folder: str) -> None:
    job = site.run_toy(folder, mode="line", lines=2000)
    ended = site.girder.wait_for_end(job, seconds=180)
    log = "".join(ended["log"])
    assert ended["status"] == SUCCESS, log[-2000:]
    assert log.startswith(("Submitted", "toy starts")) or "toy starts" in log[:4000]
    assert "bytes are left out here" in log
    assert log.count("toy ends") == 1
    assert len(log) < 5_000_000


# -- Slurm


def _pid_of(site: Site, service: str) -> int:
    text = (Path(site.stack["DEVSTACK_DIR"]) / "run" / f"{service}.json").read_text(encoding="utf-8")
    return int(json.loads(text)["pid"])


@pytest.mark.fault("slurmctld frozen (SIGSTOP)", phases=("sbatch in flight", "pending", "running", "ended"))
@pytest.mark.fault("slurmctld killed and restarted", phases=("submitted", "pending", "running", "ended"))
def test_a_controller_that_freezes_and_one_that_is_killed_lose_and_double_nothing(
    site: Site, folder: str
) -> None:
    first = [site.run_toy(folder, sleep=seconds) for seconds in (1, 4, 15)]
    for job in first:
        _runs(site, job)
    frozen = _pid_of(site, "slurmctld")
    os.kill(frozen, signal.SIGSTOP)
    try:
        meanwhile = [site.run_toy(folder, sleep=2) for _ in range(3)]
        for job in meanwhile:
            wait_until(
                "sbatch was asked",
                lambda job=job: any(entry["event"] == "intent" for entry in site.worker.entries_of(job)),
                seconds=30,
            )
    finally:
        os.kill(frozen, signal.SIGCONT)
    for job in meanwhile:
        _runs(site, job)
    highest = site.take_id()
    site.stack.service("stop", "--kill", "slurmctld")
    after = [site.run_toy(folder, sleep=1)]
    site.stack.service("start", "slurmctld")
    site.use_up_ids(highest)
    # A controller that is killed may lose a job that it has acknowledged, and give its id to another one.
    try:
        _expect_each_once(site, folder, [*first, *meanwhile, *after], attempts=3)
    finally:
        # It drains nodes on which it finds jobs whose ids it has given out again.
        site.resume_all()


class Commands:
    """A directory with Slurm's commands, some of which are in a mood."""

    def __init__(self, site: Site, **scripts: str) -> None:
        directory = site.worker.root.with_name(f"{site.worker.root.name}-moody")
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        self._mood, self._calls = directory / "mood", directory / "calls"
        for file in (self._mood, self._calls):
            file.write_text("")
            file.chmod(0o666)
        for name in _COMMANDS:
            body = scripts.get(name, "").replace("REAL", f"/usr/bin/{name}")
            body = body.replace("MOOD", str(self._mood)).replace("CALLS", str(self._calls))
            (directory / name).write_text(f'#!/bin/bash\n{body}\nexec /usr/bin/{name} "$@"\n')
            (directory / name).chmod(0o755)
        self.settings = f"[slurm]\ncommands_dir = {directory}\ncommand_timeout_seconds = 2\n"

    def are(self, mood: str, *, often: int = 0) -> None:
        """Behave so from now on, and, if wanted, have done so."""
        self._calls.write_text("")
        self._mood.write_text(mood)
        self.were_called(often)

    def were_called(self, often: int) -> None:
        """Waits until they were called so often in this mood."""
        wait_until(f"called {often} times", lambda: len(self._calls.read_text()) >= often, seconds=60)


_SQUEUE = """
echo >> CALLS
case $(cat MOOD) in
  banner) echo "*** Welcome to the cluster ***"; echo "maintenance | on | Sunday | 8:00"; REAL "$@"; echo bye; exit ;;
  part) REAL "$@" | head -c 40; exit 0 ;;
  garbage) head -c 3000 /dev/urandom; exit 0 ;;
  one) echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
  hang) sleep 60 ;;
esac
"""
_SBATCH = """
echo >> CALLS
case $(cat MOOD) in
  lost) REAL "$@" >/dev/null
    echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1 ;;
  hangs) REAL "$@" >/dev/null; sleep 60 ;;
esac
"""


@pytest.mark.fault("squeue prints a banner", phases=("pending", "running"))
@pytest.mark.fault("squeue prints a part", phases=("pending", "running"))
@pytest.mark.fault("squeue prints garbage", phases=("pending", "running"))
@pytest.mark.fault("squeue fails, hangs or is refused", phases=("pending", "running"))
def test_whatever_squeue_prints_no_job_is_thought_lost(site: Site, folder: str) -> None:
    commands = Commands(site, squeue=_SQUEUE)
    site.worker.restart(commands.settings + "poll_seconds = 0.5\n")
    jobs = [site.run_toy(folder, sleep=12)]
    _runs(site, jobs[0])
    with site.partition_down("normal"):
        jobs.append(site.run_toy(folder, sleep=2))
        wait_until("it is submitted", lambda: bool(site.worker.slurm_job_id(jobs[1])), seconds=30)
        for mood, often in (("banner", 2), ("part", 2), ("garbage", 1), ("one", 1), ("hang", 1), ("", 2)):
            commands.are(mood, often=often)
    commands.are("")
    _expect_each_once(site, folder, jobs)


@pytest.mark.fault("sbatch times out although the job exists", phases=("sbatch in flight",))
def test_a_submission_without_an_answer_is_found_and_not_made_again(site: Site, folder: str) -> None:
    commands = Commands(site, sbatch=_SBATCH)
    site.worker.restart(commands.settings)
    jobs = []
    for mood in ("lost", "hangs"):
        commands.are(mood)
        jobs += [site.run_toy(folder, sleep=2) for _ in range(2)]
        commands.were_called(2)
    _expect_each_once(site, folder, jobs)
    names = site.slurm("squeue", "-h", "-t", "all", "-o", "%j").split()
    for job in jobs:
        (token,) = {entry["token"] for entry in site.worker.entries_of(job) if entry["event"] == "attempt"}
        assert names.count(token) == 1


@pytest.mark.fault("suspended by an administrator", phases=("running",))
@pytest.mark.fault("node drained", phases=("running",))
def test_a_job_that_is_suspended_or_whose_node_is_drained_runs_to_its_end(site: Site, folder: str) -> None:
    jobs = [site.run_toy(folder, sleep=5) for _ in range(2)]
    for job in jobs:
        _runs(site, job)
    suspended, drained = (site.worker.slurm_job_id(job) for job in jobs)
    node = site.slurm("squeue", "-h", "-j", drained, "-o", "%N").strip()
    site.slurm("scontrol", "update", f"nodename={node}", "state=drain", "reason=test", as_root=True)
    try:
        site.slurm("scontrol", "suspend", suspended, as_root=True)
        assert site.slurm_state(suspended) == "SUSPENDED"
        pause = len(site.worker.entries_of(jobs[0]))
        wait_until(
            "the other has ended",
            lambda: site.girder.status(jobs[1]) == SUCCESS,
            seconds=40,
        )
        assert len(site.worker.entries_of(jobs[0])) == pause
        site.slurm("scontrol", "resume", suspended, as_root=True)
        _expect_each_once(site, folder, jobs)
    finally:
        site.resume(node)


# -- RabbitMQ


@pytest.mark.fault("connection to RabbitMQ cut", phases=("message received", "pending", "running"))
@pytest.mark.fault("RabbitMQ restarted", phases=("message received", "pending", "running"))
@pytest.mark.fault("MongoDB restarted", phases=("running", "ended", "status reporting"))
@pytest.mark.fault("Redis restarted", phases=("running", "ended", "status reporting"))
@pytest.mark.fault("Girder restarted", phases=("running", "ended", "status reporting"))
def test_broker_and_girder_and_what_it_stands_on_may_restart_under_the_jobs(site: Site, folder: str) -> None:
    jobs = [site.run_toy(folder, sleep=seconds) for seconds in (2, 12, 20)]
    _runs(site, jobs[2])
    command = [site.stack["RABBITMQ_CTL"], "close_all_connections", "test"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    jobs += [site.run_toy(folder, sleep=1) for _ in range(2)]
    site.stack.service("restart", "rabbitmq")
    jobs += [site.run_toy(folder, sleep=1) for _ in range(2)]
    site.stack.service("restart", "mongodb", "redis")
    site.stack.service("restart", "girder")
    _expect_each_once(site, folder, jobs)
    assert site.tasks_in_rabbitmq() == 0


@pytest.fixture
def two(site: Site) -> Iterator[list[Worker]]:
    """Two workers that share a queue and a root; the usual one is stopped."""
    site.worker.stop()
    root = site.worker.root.with_name(f"{site.worker.root.name}-pair")
    workers = [Worker(site.stack, root, site.worker.sif, name=name) for name in ("one", "other")]
    yield workers
    for worker in workers:
        worker.stop()


def _tripled(site: Site, count: int) -> None:
    """Takes the tasks that wait in RabbitMQ and puts each back three times."""
    with Connection(site.stack["GIRDER_WORKER_BROKER"]) as connection, connection.channel() as channel:
        kept: list[Any] = []
        wait_until("they are there", lambda: site.tasks_in_rabbitmq() == count, seconds=20)
        while (message := channel.basic_get("celery")) is not None:
            kept.append(message)
        for message in kept:
            for _ in range(3):
                Producer(channel).publish(
                    message.body,
                    routing_key="celery",
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                    reply_to=message.properties.get("reply_to"),
                    correlation_id=message.properties.get("correlation_id"),
                )
            channel.basic_ack(message.delivery_tag)


@pytest.mark.fault("message redelivered or duplicated", phases=("message received", "directory written"))
@pytest.mark.fault("two workers on one queue", phases=("message received", "directory written", "running"))
def test_a_task_that_comes_three_times_to_two_workers_runs_once(
    site: Site, folder: str, two: list[Worker]
) -> None:
    jobs = [site.run_toy(folder, sleep=2) for _ in range(5)]
    _tripled(site, len(jobs))
    for worker in two:
        worker.start()
    site_of_pair = type(site)(site.stack, site.girder, two[0], site.image, site.toy, site.sum)
    _expect_each_once(site_of_pair, folder, jobs)
    wait_until("no message is left", lambda: site.tasks_in_rabbitmq() == 0, seconds=30)


# -- the disk


@pytest.fixture
def small_disk(site: Site) -> Iterator[Worker]:
    """A worker whose jobs root is on a disk of 32 MB; the usual one is stopped."""
    site.worker.stop()
    base = site.worker.root.with_name(f"{site.worker.root.name}-disk")
    root = base / "jobs"
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", root], check=True)
    shutil.chown(root, site.stack.user, site.stack.user)
    worker = Worker(site.stack, root, site.worker.sif)
    try:
        yield worker
    finally:
        worker.stop()
        subprocess.run(["umount", "--lazy", root], check=True)
        shutil.rmtree(base, ignore_errors=True)


@pytest.mark.fault("disk full", phases=("message received", "running"))
def test_a_full_disk_keeps_tasks_in_the_queue_until_there_is_room(
    site: Site, folder: str, small_disk: Worker
) -> None:
    small_disk.start()
    jobs = [site.run_toy(folder, sleep=25)]
    _runs(site, jobs[0])
    filler = small_disk.root / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    jobs.append(site.run_toy(folder, sleep=1))
    wait_until(
        "the worker takes no more",
        lambda: b"No space left" in small_disk.log.read_bytes() and site.tasks_in_rabbitmq() == 1,
        seconds=20,
    )
    filler.unlink()
    site_of_disk = type(site)(site.stack, site.girder, small_disk, site.image, site.toy, site.sum)
    _expect_each_once(site_of_disk, folder, jobs)
    assert site.tasks_in_rabbitmq() == 0


@pytest.mark.fault("jobs root read-only", phases=("message received", "pending", "submitted"))
def test_a_jobs_root_that_is_read_only_for_a_while_keeps_tasks_in_the_queue_and_jobs_in_slurm(
    site: Site, folder: str, small_disk: Worker
) -> None:
    def remount(how: str) -> bool:
        command = ["mount", "-o", f"remount,{how}", small_disk.root]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    small_disk.start()
    with site.partition_down("normal"):
        jobs = [site.run_toy(folder, sleep=2)]
        wait_until("it is in Slurm", lambda: small_disk.slurm_job_id(jobs[0]), seconds=40)
        # Busy as long as somebody writes.
        wait_until("it is read-only", lambda: remount("ro"), seconds=20, every=0.02)
        jobs.append(site.run_toy(folder, sleep=1))
        wait_until(
            "the worker takes no more",
            lambda: b"Read-only file system" in small_disk.log.read_bytes() and site.tasks_in_rabbitmq() == 1,
            seconds=20,
        )
        # Before it starts: a node that cannot open its output costs a try.
        assert remount("rw")
    site_of_disk = type(site)(site.stack, site.girder, small_disk, site.image, site.toy, site.sum)
    _expect_each_once(site_of_disk, folder, jobs)
    assert site.tasks_in_rabbitmq() == 0


# -- Girder


@pytest.fixture
def moody(site: Site) -> Iterator[MoodyGirder]:
    """The worker's way to Girder, which can be in trouble."""
    with moody_girder(site.stack["GIRDER_URL"]) as girder:
        site.worker.restart(GIRDER_WORKER_API_URL=girder.url("/api/v1"))
        yield girder
        girder.answer_with(0)
        site.worker.stop()


_ASKED = (("PUT", "/job/"), ("GET", "/token/current"), ("GET", "/download"))
_SENT = (("POST", "/file/chunk"), ("POST", "/file?"))


@pytest.mark.parametrize(
    ("status", "requests"),
    # What a proxy does not let through, it will not let through again: 401 for a POST is an end.
    [(500, (*_ASKED, *_SENT)), (404, (*_ASKED, *_SENT)), (401, _ASKED)],
    ids=("500", "a proxy's 404", "a proxy's 401"),
)
@pytest.mark.fault(
    "Girder answers 500, or a proxy 404 or 401 for it",
    phases=("message received", "inputs staging", "running", "outputs uploading", "status reporting"),
)
def test_a_girder_in_trouble_delays_a_job_in_each_phase_and_nothing_else(
    site: Site, folder: str, moody: MoodyGirder, status: int, requests: tuple[tuple[str, str], ...]
) -> None:
    jobs = []
    for method, path in requests:
        moody.answer_with(status, method, path)
        jobs.append(site.run_toy(folder, sleep=2))
        wait_until(f"{method} {path} was refused twice", lambda: moody.answered >= 2, seconds=40)
        moody.answer_with(0)
    running = site.run_toy(folder, sleep=6)
    _runs(site, running)
    moody.answer_with(503)
    wait_until(
        "Slurm has ended it", lambda: site.slurm_state(site.worker.slurm_job_id(running)) in ("COMPLETED", "")
    )
    wait_until("everything was refused", lambda: moody.answered >= 3, seconds=40)
    moody.answer_with(0)
    _expect_each_once(site, folder, [*jobs, running])
