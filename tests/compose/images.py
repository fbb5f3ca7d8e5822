"""Builds the images of docker-compose.yaml and what they start from, ahead of the tests that use them.

``python -m tests.compose.images``, as root, with the stack's environment. What is built stays with the engine's data, so
that the tests find it in the cache of builds.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.compose.server import ComposeServer
from tests.support.container_host import ContainerHost
from tests.support.stack import DEFAULT_DIRECTORY, Stack
from tests.support.stand_ins import ensure_stand_ins

_SECONDS_TO_BUILD = 1500


def engine_of_the_tests() -> ContainerHost:
    """The engine; its data lie beside the stack's, so that they are there the next time, and gone when the stack is wiped."""
    directory = Path(os.environ.get("DEVSTACK_DIR", DEFAULT_DIRECTORY)) / "docker-engine"
    return ContainerHost(directory, compose=Path(Stack.read()["DEVSTACK_COMPOSE"]))


def build_all(engine: ContainerHost, directory: Path) -> None:
    """Has all images in the engine; `directory` becomes a deployment that is never started."""
    ensure_stand_ins(engine)
    server = ComposeServer.unpack(directory, engine.environment())
    server.run("docker/make-env.sh", "--user", "1234:2345")
    server.compose("--profile", "cluster", "build", seconds=_SECONDS_TO_BUILD)


if __name__ == "__main__":
    # Whoever ends this, ends the engine as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as made, engine_of_the_tests() as running:
        build_all(running, Path(made))
