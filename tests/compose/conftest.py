"""Docker compose for real: an engine of the tests' own, with stand-ins where the official images would be pulled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compose.images import engine_of_the_tests
from tests.compose.outside_worker import OutsideWorker
from tests.compose.server import ComposeServer
from tests.support.services import free_port
from tests.support.stack import Stack
from tests.support.stand_ins import ensure_stand_ins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.container_host import ContainerHost


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.docker)
            # The first one waits for images to be built.
            item.add_marker(pytest.mark.timeout(1500), append=False)


@pytest.fixture(scope="session")
def engine() -> Iterator[ContainerHost]:
    """A running engine with all images that this project starts from."""
    with engine_of_the_tests() as host:
        ensure_stand_ins(host)
        yield host


@pytest.fixture(scope="session")
def cluster() -> Stack:
    """The stack whose Slurm, Apptainer and registry are used."""
    return Stack.read()


@pytest.fixture(scope="session")
def server(engine: ContainerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeServer]:
    """The server, started as the documentation says, on ports that are free."""
    server = ComposeServer.unpack(tmp_path_factory.mktemp("checkout"), engine.environment())
    (server.checkout / "some sifs").mkdir()
    server.run("docker/make-env.sh", "--user", "1234:2345", "--sif", str(server.checkout / "some sifs"))
    ports = {f"{name}_PORT": str(free_port()) for name in ("GIRDER", "RABBITMQ", "MONGODB")}
    # One directory of the host and two volumes.
    server.set(**ports, MIN_FREE_MB="100", ASSETSTORE_DATA=str(server.checkout / "assetstore"))
    server.up(seconds=600)
    yield server
    server.compose("down", "--volumes", check=False)


@pytest.fixture(scope="session")
def worker(server: ComposeServer, cluster: Stack) -> Iterator[OutsideWorker]:
    """The worker outside; a test starts it."""
    worker = OutsideWorker(server, cluster)
    yield worker
    worker.remove()
