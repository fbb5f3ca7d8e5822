"""A real Apptainer and a real registry, as the development stack leaves them in DEVSTACK_* variables.

Run as the unprivileged user of the stack: root often lacks the rights that Apptainer asks for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from girder_worker_singularity import ConvertOptions, LocalCommandRunner, SifStore, StoreOptions, SystemClock
from tests.support.images import SHOW_ARGUMENTS, SHOW_SURROUNDINGS, build_and_push_image, missing_programs
from tests.support.services import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from girder_worker_singularity import Sif

HERE = Path(__file__).parent
# Of the account `reader` with the password `letmein`, for the registry that these tests start and stop.
HTPASSWD = "reader:$2b$05$LARC9O4uoxGXAHjQEpQmY.T9wp12nG3l/4J3mVgovXENNRu/tAvpS\n"

ODD_VALUE = "a b \"c\" $HOME `id` \\ 'd'"
"""What a variable of the test image holds: everything that a shell would touch."""


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.apptainer)


@pytest.fixture(scope="session", autouse=True)
def real_apptainer() -> None:
    if os.environ.get("DEVSTACK_PATH"):
        os.environ["PATH"] = f"{os.environ['DEVSTACK_PATH']}:{os.environ['PATH']}"
    if os.geteuid() == 0:
        pytest.skip("run these tests as the unprivileged user DEVSTACK_USER")
    if shutil.which("apptainer") is None:
        pytest.skip("there is no apptainer; start the development stack and load its env file")


@pytest.fixture(scope="session")
def registry() -> str:
    address = os.environ.get("DEVSTACK_REGISTRY")
    if not address or missing_programs():
        pytest.skip(f"needs DEVSTACK_REGISTRY and {missing_programs()}")
    return address


@pytest.fixture(scope="session")
def push(registry) -> Callable[..., str]:
    """Pushes an image under a name of its own; the answer is its reference."""

    def push(tag: str = "1", **image) -> str:
        name = image.pop("name", f"apptainer-tests/{uuid.uuid4().hex[:12]}")
        return build_and_push_image(registry, f"{name}:{tag}", **image)

    return push


@pytest.fixture(scope="session")
def show_image(push) -> str:
    """An image in whose directory with a blank a program shows its arguments, and another its surroundings."""
    return push(
        files={"/opt/my app/show.sh": SHOW_ARGUMENTS, "/opt/my app/env.sh": SHOW_SURROUNDINGS},
        entrypoint=["./show.sh", "one two"],
        command=["from", "the image"],
        workdir="/opt/my app",
        env={"ODD": ODD_VALUE, "PLAIN": "plain"},
        labels={"note": "y z"},
    )


@pytest.fixture(scope="session")
def session_store(registry, tmp_path_factory) -> SifStore:
    return make_store(tmp_path_factory.mktemp("sifs"), registry)


@pytest.fixture(scope="session")
def show(session_store, show_image) -> Sif:
    return session_store.ensure(show_image)


@pytest.fixture
def store(registry, tmp_path) -> SifStore:
    return make_store(tmp_path / "sifs", registry, tmp_dir=tmp_path / "build")


def make_store(root: Path, *registries: str, tmp_dir: Path | None = None, **environment: str) -> SifStore:
    convert = ConvertOptions(plain_http_registries=registries, tmp_dir=tmp_dir, environment=environment)
    options = StoreOptions(convert=convert, minimum_free_bytes=100 * 1024**2)
    return SifStore(root, LocalCommandRunner(), SystemClock(), options)


@pytest.fixture(scope="session")
def locked_registry(tmp_path_factory) -> Iterator[str]:
    """A registry that wants the account `reader` with the password `letmein`."""
    with running_registry(tmp_path_factory.mktemp("registry"), htpasswd=HTPASSWD) as address:
        yield address


@contextlib.contextmanager
def running_registry(directory: Path, *, htpasswd: str | None = None) -> Iterator[str]:
    """The address of a registry that is there as long as the block runs."""
    program = shutil.which("docker-registry")
    if program is None or missing_programs():
        pytest.skip("there is no docker-registry or no skopeo")
    address = f"127.0.0.1:{free_port()}"
    text = (
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f'http: {{addr: "{address}"}}\n'
    )
    if htpasswd is not None:
        (directory / "htpasswd").write_text(htpasswd)
        text += f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}\n"
    (directory / "config.yml").write_text(text)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(directory / "config.yml")], stdout=log, stderr=log)
    try:
        wait_for_port(address, directory / "log")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for_port(address: str, log: Path) -> None:
    host, _, port = address.partition(":")
    until = time.monotonic() + 20
    with socket.socket() as probe:
        while probe.connect_ex((host, int(port))) != 0:
            assert time.monotonic() < until, f"no registry at {address}: {log.read_text()}"
            time.sleep(0.05)
