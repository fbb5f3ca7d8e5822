"""The same image and arguments under a real Docker engine and as a SIF: the same output, byte by byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.docker_engine import DockerEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stack import Stack

pytestmark = [pytest.mark.girder, pytest.mark.timeout(180)]

# As the job script starts a container: arguments of a task, options of Docker, one environment file.
_RUN = """
import json, sys
from pathlib import Path
from girder_worker_singularity import (
    ConvertOptions, LocalCommandRunner, SifStore, StoreOptions, SystemClock, ContainerSpec, container_argv,
    container_environment, environment_file_text,
)
from girder_worker_singularity.run.docker_options import docker_options
import subprocess
asked = json.load(sys.stdin)
root = Path(asked["root"])
store = SifStore(
    root / "sifs", LocalCommandRunner(), SystemClock(),
    StoreOptions(convert=ConvertOptions(tmp_dir=root / "build"), minimum_free_bytes=100 * 1024**2),
)
sif = store.ensure(asked["image"])
options = docker_options(asked["options"])
file = root / "environment"
spec = ContainerSpec(
    sif=str(sif.path), image=sif.config, environment=options.environment, environment_file=str(file),
    entrypoint=options.entrypoint, working_dir=options.working_dir, hostname=options.hostname,
)
file.write_text(environment_file_text(container_environment(spec)))
done = subprocess.run(container_argv(spec, arguments=asked["arguments"]), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
print(json.dumps([done.returncode, done.stdout.decode("latin-1")]))
"""

_SHOW = """#!/bin/sh
for argument in "$@"; do printf '<%s>\\n' "$argument"; done
pwd
hostname | grep -x toy
for name in ODD SPACES DOLLAR QUOTES EMPTY GIVEN LINES; do eval "value=\\${$name-unset}"; printf '%s=[%s]\\n' "$name" "$value"; done
"""
_ENV = {
    "ODD": "a b \"c\" $HOME `id` \\ 'd'",
    "SPACES": "  two  words ",
    "DOLLAR": "$PATH ${HOME} $(id) \\$x",
    "QUOTES": 'it\'s "so"',
    "EMPTY": "",
    "LINES": "first\nsecond",
}
ODD_ARGUMENTS = ["a $(id) \"q\" 'x' ;é", "", "--env", "-x", "back\\slash", "two\nlines", "*", "`id`", "$HOME"]


class Both:
    """One engine and one store, asked the same things."""

    def __init__(self, stack: Stack, engine: DockerEngine, root: Path) -> None:
        self.stack, self.engine, self.root = stack, engine, root
        self.images: dict[str, str] = {}

    def image(self, kind: str) -> str:
        """The image of this kind, made once."""
        if kind not in self.images:
            name = f"like-docker/{kind}:{uuid.uuid4().hex[:8]}"
            config: dict[str, Any] = {"env": _ENV, "workdir": "/opt/my app"}
            config |= {
                "relative": {"entrypoint": ["./show.sh", "one two"], "command": ["from", "the image"]},
                "command only": {"command": ["/opt/my app/show.sh", "c 1"]},
                "no workdir": {"entrypoint": ["/opt/my app/show.sh"], "workdir": None},
                "shell form": {"entrypoint": ["/bin/sh", "-c", '"/opt/my app/show.sh" "$ODD"; exit 7']},
                "bare": {
                    "entrypoint": ["/bin/busybox", "printf"],
                    "command": ["%s\\n", "x"],
                    "applets": False,
                },
            }[kind]
            files = {"/opt/my app/show.sh": _SHOW}
            self.images[kind] = self.engine.load_image(name.replace(" ", "-"), files, **config)
        return self.images[kind]

    def under_docker(self, kind: str, arguments: list[str], **options: Any) -> tuple[int, bytes]:
        return self.engine.run(self.image(kind), arguments, **options)

    def as_sif(self, kind: str, arguments: list[str], **options: Any) -> tuple[int, bytes]:
        asked = {
            "root": str(self.root),
            "image": self.image(kind),
            "arguments": arguments,
            "options": options,
        }
        done = subprocess.run(
            self.stack.as_user([sys.executable, "-c", _RUN]),
            input=json.dumps(asked),
            env=self.stack.user_environment() | {"DOCKER_HOST": self.engine.host},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        code, output = json.loads(done.stdout)
        return code, output.encode("latin-1")


@pytest.fixture(scope="module")
def both(stack: Stack) -> Iterator[Both]:
    if os.geteuid() != 0:
        pytest.skip("only root can start a Docker engine")
    root = stack.shared / f"like-docker-{uuid.uuid4().hex[:8]}"
    root.mkdir(mode=0o700)
    shutil.chown(root, stack.user, stack.user)
    try:
        with DockerEngine(Path(stack["DEVSTACK_DIR"]), group=stack.user) as engine:
            yield Both(stack, engine, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.parametrize(
    ("kind", "arguments", "options"),
    [
        ("relative", [], {}),
        ("relative", ODD_ARGUMENTS, {}),
        ("relative", ["x"], {"environment": {"GIVEN": '$HOME "q" `id`', "ODD": "mine"}}),
        ("relative", ["x"], {"environment": ["GIVEN=a=b c", "EMPTY=not"]}),
        ("relative", ["x"], {"working_dir": "/var", "entrypoint": ["/opt/my app/show.sh"]}),
        ("relative", ["x"], {"hostname": "toy"}),
        ("relative", [], {"entrypoint": ["/bin/echo"]}),
        ("relative", ["a"], {"entrypoint": "/bin/echo 'b c'"}),
        ("relative", [], {"entrypoint": ["/bin/sh", "-c", "exit 5"]}),
        ("relative", ["/bin/echo", "no entrypoint"], {"entrypoint": []}),
        ("command only", [], {}),
        ("command only", [], {"entrypoint": []}),
        ("command only", ["/bin/echo", "a  b"], {}),
        ("command only", ["sh", "-c", "sh -c 'kill -9 $$'; echo $?; exit 255"], {}),
        ("no workdir", ["x"], {}),
        ("shell form", [], {}),
        ("bare", [], {}),
        ("bare", ["%s|", "a", "b"], {}),
    ],
)  # fmt: skip
def test_output_and_exit_code_are_those_of_docker(
    both: Both, kind: str, arguments: list[str], options: dict[str, Any]
) -> None:
    expected = both.under_docker(kind, arguments, **options)
    assert expected[1] or expected[0], "the comparison would compare nothing"
    assert both.as_sif(kind, arguments, **options) == expected
