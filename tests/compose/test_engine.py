"""The ground the other tests here stand on: the stand-ins have what is relied on in the official images."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.container_host import ContainerHost


@pytest.mark.parametrize(
    ("image", "command", "said"),
    [
        ("debian:bookworm-slim", "cat /etc/os-release", "VERSION_CODENAME=bookworm"),
        ("debian:trixie-slim", "cat /etc/os-release", "VERSION_CODENAME=trixie"),
        ("debian:trixie-slim", "cat /etc/apt/sources.list.d/debian.sources", "Suites: trixie"),
        ("python:3.11-slim", "python --version", "Python 3.11"),
        ("redis:7", "redis-server --version", "v=7."),
        ("mongo:6", "mongod --version", "db version v6."),
        ("rabbitmq:4", "rabbitmqctl version", "4."),
    ],
)
def test_a_stand_in_is_what_its_name_says(engine: ContainerHost, image: str, command: str, said: str) -> None:
    argv = ["docker", "run", "--rm", "--network=none", image, *command.split()]
    done = subprocess.run(argv, env=engine.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
