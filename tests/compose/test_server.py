"""docker-compose.yaml on a real engine: what an administrator does with it, and what goes wrong."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pymongo
import pymongo.errors
import pytest
import requests

from tests.compose.server import said
from tests.support.girder_site import SUCCESS, wait_until
from tests.support.toy_cli import push_toy_cli

if TYPE_CHECKING:
    from tests.compose.outside_worker import OutsideWorker
    from tests.compose.server import ComposeServer
    from tests.support.stack import Stack

NOTHING = "All is there, nothing was changed."


def test_all_is_healthy_and_girder_has_its_plugins_and_web_client(
    server: ComposeServer, cluster: Stack
) -> None:
    checked = server.check()
    assert checked.returncode == 0, checked.stdout
    states = {name: container["State"] for name, container in server.containers().items()}
    once = {"prepare", "accounts", "provision"}
    assert {name for name, state in states.items() if state["Status"] == "exited"} == once
    assert {states[name]["ExitCode"] for name in once} == {0}
    assert {states[name]["Health"]["Status"] for name in set(states) - once} == {"healthy"}
    girder = server.girder(cluster)
    assert girder.call("GET", "system/version")["release"] == "5.0.21"
    assert set(girder.call("GET", "system/plugins")["loaded"]) >= {"jobs", "worker", "slicer_cli_web"}
    assert "<script" in requests.get(girder.stack["GIRDER_URL"], timeout=30).text


def test_it_runs_as_dsa_user_and_only_preparing_is_root(server: ComposeServer) -> None:
    containers = server.containers()
    wanted = server.variables()["DSA_USER"]
    assert {
        containers[name]["Config"]["User"] for name in ("mongodb", "redis", "girder", "local-worker")
    } == {wanted}
    assert not any(container["HostConfig"]["Privileged"] for container in containers.values())
    owner = (server.checkout / "assetstore").stat()
    assert f"{owner.st_uid}:{owner.st_gid}" == wanted
    inside = server.compose("exec", "-T", "mongodb", "stat", "-c", "%u:%g", "/data/db").stdout.strip()
    assert inside == wanted


def test_the_directory_of_sifs_can_be_read_in_girders_container_and_no_more(server: ComposeServer) -> None:
    (server.checkout / "some sifs" / "a.sif").write_text("SIF")
    assert server.compose("exec", "-T", "girder", "ls", "/SIF").stdout.split() == ["a.sif"]
    written = server.compose("exec", "-T", "--user", "0", "girder", "touch", "/SIF/b.sif", check=False)
    assert "Read-only file system" in written.stdout


def test_nothing_is_published_beyond_loopback(server: ComposeServer) -> None:
    published = [
        (name, binding["HostIp"], int(binding["HostPort"]))
        for name, container in server.containers().items()
        for bindings in (container["NetworkSettings"]["Ports"] or {}).values()
        for binding in bindings or []
    ]
    assert sorted(published) == [
        ("girder", "127.0.0.1", server.port("GIRDER")),
        ("mongodb", "127.0.0.1", server.port("MONGODB")),
        ("rabbitmq", "127.0.0.1", server.port("RABBITMQ")),
    ]
    listening = [line.split()[3] for line in server.run("ss", "-Hltn").stdout.splitlines()]
    for _, _, port in published:
        assert [address for address in listening if address.endswith(f":{port}")] == [f"127.0.0.1:{port}"]


def test_no_password_shows_in_docker_inspect_or_in_a_log(server: ComposeServer) -> None:
    text = json.dumps(server.containers()) + server.compose("logs", "--no-color").stdout
    assert len(server.passwords()) == 3
    assert not [password for password in server.passwords() if password in text]


def test_provisioning_again_changes_nothing(server: ComposeServer) -> None:
    before = documents(server)
    done = server.compose("run", "--rm", "-T", "--no-deps", "provision")
    assert NOTHING in done.stdout
    assert documents(server) == before
    assert len(before["user"]) == len(before["assetstore"]) == len(before["collection"]) == 1


def documents(server: ComposeServer) -> dict[str, list[object]]:
    """All that provisioning could have changed, from the database itself."""
    account = f"girder:{server.variables()['MONGODB_PASSWORD']}"
    with pymongo.MongoClient(
        f"mongodb://{account}@127.0.0.1:{server.port('MONGODB')}/?authSource=admin"
    ) as client:
        database = client["girder"]
        names = ("user", "assetstore", "collection", "folder", "setting", "job")
        return {name: list(database[name].find({}, {"lastLogin": 0}).sort("_id", 1)) for name in names}


def test_mongodb_lets_nobody_in_without_the_password(server: ComposeServer) -> None:
    with (
        pymongo.MongoClient("127.0.0.1", server.port("MONGODB"), serverSelectionTimeoutMS=10000) as client,
        pytest.raises(pymongo.errors.OperationFailure, match="requires authentication"),
    ):
        client["girder"]["user"].find_one()


def test_an_image_of_the_file_is_ingested_once_and_runs_in_slurm(
    server: ComposeServer, cluster: Stack, worker: OutsideWorker
) -> None:
    image = push_toy_cli(cluster["DEVSTACK_REGISTRY"], "compose/toy:1")
    (server.checkout / "site.yaml").write_text(f"images: [{image}]\nsettings: {{core.brand_name: Ours}}\n")
    server.set(PROVISION_YAML="./site.yaml")
    try:
        first = server.compose("run", "--rm", "-T", "--no-deps", "provision").stdout
        assert f"asked the worker to ingest {image}" in first
        assert 'set core.brand_name to "Ours"' in first
        assert NOTHING in server.compose("run", "--rm", "-T", "--no-deps", "provision").stdout
        worker.start()
        girder = server.girder(cluster)
        wait_until(
            "the image is ingested", lambda: girder.call("GET", "slicer_cli_web/docker_image"), seconds=90
        )
        assert NOTHING in server.compose("run", "--rm", "-T", "--no-deps", "provision").stdout
    finally:
        server.set(PROVISION_YAML="")
    folder = girder.new_folder()
    file = girder.upload(folder, "in.txt", b"hello\n")
    toy = girder.cli(image, "Toy")
    job = girder.wait_for_end(
        girder.run(toy, inputFile=file, outputFile="out.txt", outputFile_folder=folder, text="a b")
    )
    assert job["status"] == SUCCESS, job["log"]
    assert girder.files(folder)["out.txt"] == b"text=<a b>\ninput=hello\n"


def test_a_mistake_in_the_file_is_named_and_nothing_changes(server: ComposeServer) -> None:
    before = documents(server)
    (server.checkout / "wrong.yaml").write_text("images: [5]\nsetings: {}\n")
    server.set(PROVISION_YAML="./wrong.yaml")
    try:
        done = server.compose("run", "--rm", "-T", "--no-deps", "provision", check=False)
    finally:
        server.set(PROVISION_YAML="")
    assert done.returncode == 1
    assert "images[0]: has to be text, not 5" in done.stdout
    assert "unknown `setings`" in done.stdout
    assert documents(server) == before


def test_an_outdated_env_file_is_named_with_its_remedy(server: ComposeServer) -> None:
    secret = server.variables()["MONGODB_PASSWORD"]
    server.set(MONGODB_PASSWORD="")
    try:
        done = server.compose("up", "-d", check=False)
        checked = server.check()
    finally:
        server.set(MONGODB_PASSWORD=secret)
    for text in (done.stdout, checked.stdout):
        assert "MONGODB_PASSWORD is missing a value: run docker/make-env.sh --update" in said(text)
    assert done.returncode != 0
    assert checked.returncode == 1


def test_little_space_makes_girder_unhealthy_and_check_say_so(server: ComposeServer) -> None:
    health = (
        "exec",
        "-T",
        "-e",
        "MIN_FREE_MB=1000000000",
        "girder",
        "python3",
        "-m",
        "girder_compose",
        "health",
        "girder",
    )
    done = server.compose(*health, check=False)
    assert done.returncode == 1
    assert "MB are free for Girder's files (/assetstore), less than MIN_FREE_MB (1000000000)" in done.stdout
    server.set(MIN_FREE_MB="1000000000")
    try:
        checked = server.check()
    finally:
        server.set(MIN_FREE_MB="100")
    assert checked.returncode == 1
    assert "(images and volumes), less than MIN_FREE_MB (1000000000)" in checked.stdout


def test_other_passwords_in_env_are_explained_and_the_explanations_help(
    server: ComposeServer, cluster: Stack
) -> None:
    before = server.variables()
    server.set(GIRDER_ADMIN_PASSWORD="Another0")
    done = server.compose("run", "--rm", "-T", "--no-deps", "provision", check=False)
    assert done.returncode == 1
    assert "Girder refuses the user `admin` with GIRDER_ADMIN_PASSWORD of .env" in said(done.stdout)
    server.set(**before | {"RABBITMQ_PASSWORD": "Another1", "MONGODB_PASSWORD": "Another2"})
    assert "RABBITMQ_PASSWORD, MONGODB_PASSWORD in .env is not what these containers" in why_not(server)
    # What runs goes on with the passwords it has.
    assert requests.get(f"http://127.0.0.1:{server.port('GIRDER')}/api/v1/system/version", timeout=30).ok
    told = why_not(server, "--force-recreate")
    assert "RabbitMQ refuses the user `girder` with the password that is in .env now" in told
    advice = "docker compose exec rabbitmq rabbitmqctl change_password girder"
    assert advice in told
    command, *words = advice.split()[2:]
    server.compose(command, "-T", *words, stdin="Another1\n")
    assert "MongoDB refuses the user `girder`" in why_not(server)
    server.set(MONGODB_PASSWORD=before["MONGODB_PASSWORD"])
    server.up("--force-recreate")
    assert server.girder(cluster).call("GET", "user/me")["admin"]


def why_not(server: ComposeServer, *arguments: str) -> str:
    """What docker/check.sh says after an `up` that did not succeed."""
    assert server.up(*arguments, check=False).returncode != 0
    checked = server.check()
    assert checked.returncode == 1, checked.stdout
    return said(checked.stdout)


@pytest.mark.fault("whole server upgraded", phases=("message received",))
def test_an_upgrade_loses_no_queued_job_and_no_data(
    server: ComposeServer, cluster: Stack, worker: OutsideWorker
) -> None:
    worker.stop()
    girder = server.girder(cluster)
    image = f"{cluster['DEVSTACK_REGISTRY']}/compose/toy:1"
    folder = girder.new_folder()
    file = girder.upload(folder, "kept.txt", b"kept\n")
    toy = girder.cli(image, "Toy")
    job = girder.run(toy, inputFile=file, outputFile="out.txt", outputFile_folder=folder)
    before = documents(server)
    server.compose("down")
    # Another program takes the port meanwhile.
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", server.port("GIRDER")))
        other.listen()
        checked = server.check()
        refused = server.compose("up", "-d", check=False)
        server.compose("down")
    assert checked.returncode == 1
    assert (
        f"Port {server.port('GIRDER')} at 127.0.0.1 is taken by another program, girder needs it"
        in checked.stdout
    )
    assert refused.returncode != 0
    assert "already" in refused.stdout
    # The new version is another image under another tag.
    server.set(GIRDER_IMAGE="girder-worker-slurm/server:next")
    (server.checkout / "docker" / "server" / "Dockerfile").open("a").write("LABEL version=next\n")
    server.compose("build", "--quiet")
    server.up()
    containers = server.containers()
    assert containers["girder"]["Config"]["Labels"]["version"] == "next"
    assert documents(server) == before
    worker.start()
    girder = server.girder(cluster)
    ended = girder.wait_for_end(job)
    assert ended["status"] == SUCCESS, ended["log"]
    assert girder.files(folder) == {"kept.txt": b"kept\n", "out.txt": b"text=<>\ninput=kept\n"}
