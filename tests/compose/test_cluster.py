"""docker compose --profile cluster: server, Slurm, nodes and worker in containers, as somebody without a cluster has them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.compose.server import ComposeServer
from tests.support import toy_cli
from tests.support.girder_site import CANCELED, RUNNING, SUCCESS, GirderSite, wait_until
from tests.support.services import free_port
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.container_host import ContainerHost

IMAGE = "cluster-tests/toy:1"
USER = "1234:2345"
CLUSTER = ("controller", "c1", "c2", "slurm-worker")


@dataclass
class ClusterSite:
    """A running deployment with the toy image ingested."""

    server: ComposeServer
    girder: GirderSite
    toy: str

    def run_toy(self, folder: str, **params: object) -> str:
        """Starts the toy CLI on a small file of its own and returns the job."""
        file = self.girder.upload(folder, f"input-{uuid.uuid4().hex[:6]}.txt", b"hello\n")
        return self.girder.run(
            self.toy, inputFile=file, outputFile="out.txt", outputFile_folder=folder, **params
        )

    def cluster(self, *arguments: str) -> str:
        """What a deployment's compose command prints."""
        return self.server.compose("--profile", "cluster", *arguments).stdout

    def wait_for_log(self, job: str, text: str) -> None:
        """Returns when the job has said this."""
        wait_until(f"job {job} says {text!r}", lambda: text in self.girder.log(job), seconds=90, every=0.5)


@pytest.fixture(scope="module")
def site(engine: ContainerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSite]:
    """Brought up as docs/howto/compose-cluster.md says, with an image that no registry has."""
    server = ComposeServer.unpack(tmp_path_factory.mktemp("cluster"), engine.environment())
    server.run("docker/make-env.sh", "--user", USER)
    ports = {f"{name}_PORT": str(free_port()) for name in ("GIRDER", "RABBITMQ", "MONGODB")}
    server.set(**ports, MIN_FREE_MB="100", COMPOSE_PROJECT_NAME="girder-with-cluster")
    try:
        done = server.compose(
            "--profile", "cluster", "up", "-d", "--wait", "--build", seconds=1500, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{server.check().stdout}"
        engine.load_image(IMAGE, toy_cli.FILES, entrypoint=toy_cli.ENTRYPOINT, workdir=toy_cli.WORKDIR)
        put = "cat > /shared/archives/cluster-tests_toy_1.tar"
        save = f"docker save {IMAGE} | docker compose exec -T slurm-worker sh -c '{put}'"
        server.run("bash", "-o", "pipefail", "-c", save)
        girder = server.girder(Stack({}))
        girder.ingest(IMAGE)
        yield ClusterSite(server, girder, girder.cli(IMAGE, "Toy"))
    finally:
        server.compose("--profile", "cluster", "down", "--volumes", check=False)


@pytest.fixture
def folder(site: ClusterSite) -> str:
    return site.girder.new_folder()


def test_nobody_in_the_cluster_is_root_or_privileged(site: ClusterSite) -> None:
    containers = site.server.containers()
    assert set(CLUSTER) < set(containers)
    for name, container in containers.items():
        limits = container["HostConfig"]
        assert not limits["Privileged"], name
        assert not any("docker.sock" in mount["Source"] for mount in container["Mounts"]), name
        if name in CLUSTER:
            assert container["Config"]["User"] == USER, name
            assert (limits["CapAdd"], limits["CapDrop"]) == (None, ["ALL"]), name
    devices = {name: containers[name]["HostConfig"]["Devices"] for name in CLUSTER}
    assert not devices.pop("controller")
    assert {device["PathOnHost"] for found in devices.values() for device in found} == {"/dev/fuse"}
    for name in CLUSTER:
        # Processes are asked, not the configuration: whoever has changed identity shows here.
        uids = site.cluster("exec", "-T", name, "sh", "-c", "cat /proc/[0-9]*/status | grep ^Uid:")
        assert set(re.findall(r"\d+", uids)) == {USER.partition(":")[0]}, name
        powers = site.cluster("exec", "-T", name, "sh", "-c", "cat /proc/[0-9]*/status | grep ^CapEff:")
        assert set(powers.split()) == {"CapEff:", "0" * 16}, name
    key = site.cluster("exec", "-T", "controller", "stat", "-c", "%a %u:%g", "/shared/munge/key").strip()
    assert key == f"600 {USER}"


def test_no_password_of_the_deployment_shows(site: ClusterSite) -> None:
    shown = site.server.run("docker", "inspect", *site.cluster("ps", "--all", "--quiet").split()).stdout
    shown += site.cluster("logs", "--no-color")
    shown += site.cluster("exec", "-T", "slurm-worker", "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert not [password for password in site.server.passwords() if password in shown]


def test_a_cli_runs_end_to_end_on_every_node(site: ClusterSite, folder: str) -> None:
    jobs = [site.run_toy(folder, sleep=3, text=f"number {number}") for number in range(4)]
    ended = [site.girder.wait_for_end(job, seconds=120) for job in jobs]
    logs = [site.girder.log(job) for job in jobs]
    assert [job["status"] for job in ended] == [SUCCESS] * 4, logs
    nodes = {node for log in logs for node in re.findall(r"toy starts in /opt/toy on (\S+)", log)}
    assert nodes == {"c1", "c2"}
    assert not [line for log in logs for line in log.splitlines() if "WARNING" in line]
    outputs = [text for name, text in site.girder.files(folder).items() if name.startswith("out.txt")]
    assert sorted(outputs) == [b"text=<number %d>\ninput=hello\n" % number for number in range(4)]


def test_cancel_ends_the_job_and_all_its_processes(site: ClusterSite, folder: str) -> None:
    job = site.run_toy(folder, sleep=100)
    site.wait_for_log(job, "second 1")
    site.girder.cancel(job)
    assert site.girder.wait_for_end(job, seconds=60)["status"] == CANCELED
    running = 'cat /proc/[0-9]*/cmdline 2>/dev/null | tr "\\0" " "'

    def gone() -> bool:
        seen = "".join(site.cluster("exec", "-T", node, "sh", "-c", running) for node in ("c1", "c2"))
        return "/opt/toy" not in seen and "Toy.sh" not in seen and "starter" not in seen

    wait_until("nothing of it runs", gone, seconds=30, every=1)


@pytest.mark.fault("slurmctld restarted", phases=("running",))
def test_jobs_survive_a_restart_of_worker_and_controller(site: ClusterSite, folder: str) -> None:
    before = [site.run_toy(folder, sleep=12, text=f"before {number}") for number in range(2)]
    for job in before:
        site.wait_for_log(job, "second 1")
    site.cluster("stop", "slurm-worker")
    meanwhile = [site.run_toy(folder, text="meanwhile")]
    site.cluster("restart", "controller")
    assert {site.girder.status(job) for job in before} == {RUNNING}
    site.cluster("up", "-d", "--wait")
    after = [site.run_toy(folder, text="after")]
    for job in (*before, *meanwhile, *after):
        ended = site.girder.wait_for_end(job, seconds=120)
        log = site.girder.log(job)
        assert ended["status"] == SUCCESS, log
        assert log.count("toy starts") == log.count("toy ends") == 1, log
    outputs = [text for name, text in site.girder.files(folder).items() if name.startswith("out.txt")]
    texts = ("after", "before 0", "before 1", "meanwhile")
    assert sorted(outputs) == [f"text=<{text}>\ninput=hello\n".encode() for text in texts]


@pytest.mark.fault("worker killed (SIGKILL)", phases=("running",))
def test_a_worker_that_crashes_comes_back_by_itself_and_takes_its_jobs_up_again(
    site: ClusterSite, folder: str
) -> None:
    job = site.run_toy(folder, sleep=8)
    site.wait_for_log(job, "second 1")
    before = site.server.containers()["slurm-worker"]["State"]["StartedAt"]
    # The brackets keep the shell from finding itself.
    look = 'for p in /proc/[0-9]*; do if grep -q "girder_worker[.]app" $p/cmdline; then kill -KILL ${p#/proc/}; fi; done'
    site.server.compose("exec", "-T", "slurm-worker", "sh", "-c", look, check=False)

    def is_back() -> bool:
        state = site.server.containers()["slurm-worker"]["State"]
        return state["StartedAt"] != before and state["Health"]["Status"] == "healthy"

    # A minute of it goes by to see whether the one before is dead.
    wait_until("the worker is back", is_back, seconds=180, every=1)
    ended = site.girder.wait_for_end(job, seconds=120)
    log = site.girder.log(job)
    assert ended["status"] == SUCCESS, log
    assert log.count("toy starts") == log.count("toy ends") == 1, log


@pytest.mark.fault("node down (slurmd killed)", phases=("running",))
def test_a_job_whose_node_goes_away_runs_again_on_the_other(site: ClusterSite, folder: str) -> None:
    job = site.run_toy(folder, sleep=15)
    site.wait_for_log(job, "second 1")
    (node,) = re.findall(r"toy starts in /opt/toy on (\S+)", site.girder.log(job))
    site.cluster("kill", node)
    try:
        ended = site.girder.wait_for_end(job, seconds=240)
        log = site.girder.log(job)
        assert ended["status"] == SUCCESS, log
        assert f"was lost because its node failed on {node}" in log
        nodes = re.findall(r"toy starts in /opt/toy on (\S+)", log)
        assert (nodes[0], set(nodes)) == (node, {"c1", "c2"})
        assert len(site.girder.files(folder)) == 2  # input and output
    finally:
        site.cluster("up", "-d", "--wait")
    assert site.cluster("exec", "-T", "controller", "sinfo", "-h", "-o", "%D %T").split() == ["2", "idle"]
