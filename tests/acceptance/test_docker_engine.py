"""Images that only a Docker engine on the worker's host has, taken from a real engine by the unprivileged user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest

from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.source.docker_engine import engine_image
from tests.support.docker_engine import DockerEngine
from tests.support.images import build_and_push_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stack import Stack

pytestmark = [pytest.mark.girder, pytest.mark.timeout(120)]

ENSURE = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from girder_worker_singularity import (
    ConvertOptions, LocalCommandRunner, SifStore, StoreOptions, SystemClock, run_on_this_host,
)
root, registry, image, policy = sys.argv[1:]
convert = ConvertOptions(plain_http_registries=(registry,), tmp_dir=Path(root, "build"))
options = StoreOptions(convert=convert, minimum_free_bytes=100 * 1024**2)
store = SifStore(Path(root, "sifs"), LocalCommandRunner(), SystemClock(), options)
told = []
started = time.monotonic()
sif = store.ensure(image, policy=policy, on_progress=told.append)
seconds = time.monotonic() - started
ran = run_on_this_host(sif, ["argument"], runner=LocalCommandRunner(), scratch=Path(root))
note = json.loads(sif.path.with_name(sif.path.name + ".json").read_text())
print(json.dumps({
    "seconds": seconds, "converted": sif.converted, "config": asdict(sif.config), "digest": sif.digest,
    "source": note["source"], "told": told, "said": ran.stdout,
}))
"""


@dataclass
class Host:
    """The worker's host, as its user sees it."""

    stack: Stack
    engine: DockerEngine
    root: Path

    def ensure(self, image: str, policy: str = "if-not-present") -> dict[str, Any]:
        """What became of the image, in a process of that user."""
        argv = [sys.executable, "-c", ENSURE, str(self.root), self.stack["DEVSTACK_REGISTRY"], image, policy]
        env = self.stack.user_environment() | {"DOCKER_HOST": self.engine.host}
        done = subprocess.run(
            self.stack.as_user(argv), env=env, cwd="/", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def push(self) -> str:
        """An image that the registry has, under a new name."""
        return build_and_push_image(
            self.stack["DEVSTACK_REGISTRY"],
            f"engine-tests/{uuid.uuid4().hex[:12]}:1",
            {"/say.sh": "#!/bin/sh\necho from the registry\n"},
            entrypoint=["/say.sh"],
        )


@pytest.fixture
def host(stack: Stack) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("only root can start a Docker engine")
    root = stack.shared / f"engine-{uuid.uuid4().hex[:8]}"
    try:
        with DockerEngine(Path(stack["DEVSTACK_DIR"]), group=stack.user) as engine:
            yield Host(stack, engine, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def test_an_image_that_only_the_engine_has_is_taken_from_there_and_followed(host: Host) -> None:
    image = host.engine.load(f"engine-tests/{uuid.uuid4().hex[:12]}:1", "one")
    first = host.ensure(image)
    assert (first["converted"], first["source"], first["digest"]) == (True, "docker-daemon", None)
    assert first["config"]["entrypoint"] == ["./say.sh"]
    assert first["config"]["command"] == ["from", "the image"]
    assert first["config"]["working_dir"] == "/opt/my app"
    assert first["config"]["labels"]["note"] == "y z"
    assert first["said"] == "one a b /opt/my app argument\n"
    assert not host.ensure(image, "always")["converted"]
    host.engine.load(image, "two")
    assert not host.ensure(image)["converted"]
    second = host.ensure(image, "always")
    assert second["converted"]
    assert second["said"] == "two a b /opt/my app argument\n"


def test_the_size_that_an_engine_tells_is_what_it_saves(host: Host) -> None:
    image = host.engine.load_image("engine-tests/large:1", {"/noise": os.urandom(5_000_000)})
    known = engine_image(parse_image_reference(image), {"DOCKER_HOST": host.engine.host})
    assert known is not None
    assert known.saved_bytes is not None
    client = docker.DockerClient(host.engine.host, timeout=30)
    saved = sum(len(piece) for piece in client.images.get(image).save())
    client.close()
    assert known.saved_bytes <= saved <= known.saved_bytes * 1.05


def test_the_engine_s_image_goes_before_the_registry_s_of_the_same_name(host: Host) -> None:
    image = host.engine.load(host.push(), "from the engine")
    taken = host.ensure(image)
    assert taken["source"] == "docker-daemon"
    assert taken["said"].startswith("from the engine")


def test_an_image_that_the_engine_lacks_comes_from_the_registry(host: Host) -> None:
    pulled = host.ensure(host.push())
    assert (pulled["source"], pulled["said"]) == ("docker", "from the registry\n")
    assert pulled["digest"].startswith("sha256:")


def test_an_engine_that_died_or_hangs_is_not_waited_for(host: Host) -> None:
    image = host.engine.load(host.push(), "from the engine")
    host.engine.hang()
    try:
        pulled = host.ensure(image)
    finally:
        host.engine.go_on()
    assert (pulled["source"], pulled["said"]) == ("docker", "from the registry\n")
    assert pulled["seconds"] < 20  # one question is given up after 5
    host.engine.kill()
    assert Path(host.engine.host.removeprefix("unix://")).is_socket()
    pulled = host.ensure(host.push())
    assert pulled["source"] == "docker"
    assert pulled["seconds"] < 5
    assert not any("Docker engine" in line for line in pulled["told"])
