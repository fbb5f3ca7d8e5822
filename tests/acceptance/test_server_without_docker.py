"""Girder's side installed by server/install.sh and started as its units say, on the services of the real stack."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pymongo
import pytest
import requests

from tests.support.girder_site import wait_until
from tests.support.services import answers, free_port
from tests.support.systemd_unit import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stack import Stack

pytestmark = pytest.mark.girder

REPOSITORY = Path(__file__).parents[2]
UNITS = ("girder.service", "girder-local-worker.service")
#: The places that install.sh can be told.
PLACES = {"PROGRAMS": "programs", "CONFIG": "etc", "DATA": "data", "UNITS": "units"}
PING = """
import json, sys
from girder_worker.app import app
print(json.dumps(app.control.inspect(destination=[sys.argv[1]], timeout=10).ping()))
"""


def install(stack: Stack, top: Path) -> subprocess.CompletedProcess[str]:
    places = {f"GIRDER_SERVER_{name}": str(top / place) for name, place in PLACES.items()}
    return subprocess.run(
        [REPOSITORY / "server" / "install.sh"],
        env={**os.environ, **places, "GIRDER_SERVER_USER": stack["DEVSTACK_SERVICE_USER"]},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def settings(top: Path) -> dict[str, str]:
    lines = (top / "etc" / "girder.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def server(stack: Stack) -> Iterator[Path]:
    """Where the server is installed: programs, etc, data and units below one directory."""
    top = Path(stack["DEVSTACK_DIR"]) / f"server-{uuid.uuid4().hex[:6]}"
    (top / "units").mkdir(parents=True)
    python = top / "programs" / "venv" / "bin" / "python"
    # What pip does in minutes is done in seconds; install.sh finds it there and looks at the versions.
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert uv, "uv is not in the environment of the tests"
    pins = ["--constraint", str(REPOSITORY / "worker" / "constraints.txt")]
    wanted = ["girder-plugin-worker==5.0.21", "girder-slicer-cli-web==5.0.21"]
    try:
        for arguments in (
            ["venv", "--quiet", "--seed", "--python=/usr/bin/python3", str(python.parents[1])],
            ["pip", "install", "--quiet", "--compile-bytecode", f"--python={python}", *pins, *wanted],
        ):
            subprocess.run([uv, *arguments], check=True, timeout=280)
        done = install(stack, top)
        assert done.returncode == 0, done.stderr
        yield top
    finally:
        shutil.rmtree(top)


@pytest.fixture
def configured(stack: Stack, server: Path) -> Iterator[dict[str, str]]:
    """The settings, changed as an administrator does it: to the services that there are, and to a free port."""
    database = stack["GIRDER_MONGO_URI"].rpartition("/")[0] + f"/{server.name}"
    changed = settings(server) | {
        "GIRDER_MONGO_URI": database,
        "GIRDER_NOTIFICATION_REDIS_URL": stack["GIRDER_NOTIFICATION_REDIS_URL"],
        "GIRDER_WORKER_BROKER": stack["GIRDER_WORKER_BROKER"],
        "GIRDER_WORKER_BACKEND": stack["GIRDER_WORKER_BACKEND"],
        "GIRDER_PORT": str(free_port()),
    }
    file = server / "etc" / "girder.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in changed.items()), encoding="utf-8")
    yield changed
    with pymongo.MongoClient[dict[str, object]](database) as client:
        client.drop_database(server.name)


def test_systemd_understands_the_units_and_finds_what_they_start(server: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", *(server / "units" / unit for unit in UNITS)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_the_services_are_exposed_to_little(server: Path, unit: str) -> None:
    # 9.6 is a service without any protection; the threshold is in tenths.
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", server / "units" / unit],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_only_root_reads_the_settings_and_nobody_else_changes_the_programs(server: Path) -> None:
    file = (server / "etc" / "girder.env").stat()
    assert (file.st_mode & 0o777, file.st_uid) == (0o600, 0)
    assert (server / "programs" / "venv" / "bin" / "girder").stat().st_uid == 0
    assert (server / "data" / "assetstore").stat().st_mode & 0o007 == 0


def test_installing_again_keeps_settings_and_data(stack: Stack, server: Path) -> None:
    before = (server / "etc" / "girder.env").read_bytes()
    (server / "data" / "assetstore" / "file").write_text("slide")
    done = install(stack, server)
    assert done.returncode == 0, done.stderr
    assert (server / "etc" / "girder.env").read_bytes() == before
    assert (server / "data" / "assetstore" / "file").read_text() == "slide"


def test_the_units_start_girder_and_its_local_worker(
    stack: Stack, server: Path, configured: dict[str, str], tmp_path: Path
) -> None:
    """As their user, without any capability, and with everything read-only but the data."""
    root = f"http://127.0.0.1:{configured['GIRDER_PORT']}/api/v1"
    girder, local = (Unit(server / "units" / name) for name in UNITS)
    logs = tmp_path / "girder.log", tmp_path / "local.log"
    with girder.running(logs[0]) as process, local.running(logs[1]) as worker:
        wait_until(
            "Girder answers",
            lambda: answers(f"{root}/system/version"),
            seconds=90,
            give_up=lambda: logs[0].read_text() if process.poll() is not None else "",
        )
        _store_a_file(root, server / "data" / "assetstore")
        wait_until(
            "the local worker is ready",
            lambda: " ready." in logs[1].read_text(),
            seconds=90,
            give_up=lambda: logs[1].read_text() if worker.poll() is not None else "",
        )
        node = f"girder-local@{socket.gethostname()}"
        names = ("GIRDER_WORKER_BROKER", "GIRDER_WORKER_BACKEND")
        ping = subprocess.run(
            [sys.executable, "-c", PING, node], env=os.environ | {name: stack[name] for name in names},
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert json.loads(ping.stdout.splitlines()[-1])[node] == {"ok": "pong"}
    text = "".join(log.read_text() for log in logs)
    assert "Traceback" not in text
    assert "Read-only file system" not in text


def _store_a_file(root: str, assetstore: Path) -> None:
    """As docs/howto/server-without-docker.md says: the first user, the assetstore, and then a file in it."""
    session = requests.Session()

    def call(method: str, path: str, **parameters: object) -> dict[str, object]:
        answer = session.request(method, f"{root}/{path}", data=parameters, timeout=30)
        assert answer.ok, answer.text
        found: dict[str, object] = answer.json()
        return found

    made = call(
        "POST", "user", login="admin", password="password", firstName="A", lastName="B", email="a@example.org"
    )
    session.headers["Girder-Token"] = str(made["authToken"]["token"])  # type: ignore[index]
    call("POST", "assetstore", name="Assetstore", type=0, root=str(assetstore))
    folder = call("POST", "folder", parentType="user", parentId=made["_id"], name="Slides")
    upload = call("POST", "file", parentType="folder", parentId=folder["_id"], name="a.txt", size=5)
    answer = session.post(
        f"{root}/file/chunk", params={"uploadId": str(upload["_id"]), "offset": 0}, data=b"slide", timeout=30,
        headers={"Content-Type": "application/octet-stream"},
    )  # fmt: skip
    assert answer.ok, answer.text
    stored = [path for path in assetstore.rglob("*") if path.is_file() and path.read_bytes() == b"slide"]
    assert any(path.name != "file" for path in stored)
