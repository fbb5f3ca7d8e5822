"""Has all stand-ins in an engine, making only what changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import docker.errors

from devstack.layout import DEFAULT_BASE, Layout
from tests.support.stand_ins import base

if TYPE_CHECKING:
    from tests.support.container_host import ContainerHost

_HERE = Path(__file__).parent
_SECONDS_TO_BUILD = 900


def ensure_stand_ins(engine: ContainerHost) -> None:
    """Returns when the engine has every image that this project starts from, under its official name."""
    recipes = [base.Recipe.of_this_machine(suite) for suite in base.SUITES]
    missing = [recipe for recipe in recipes if _recipe_of(engine, recipe.image) != recipe.digest]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda recipe: base.make(recipe, engine), missing))
    environment = {
        **engine.environment(),
        "STAND_INS": str(_HERE),
        "MONGOD_DIRECTORY": str(_mongod().parent),
    }
    done = subprocess.run(
        ["docker", "compose", "--progress=plain", "--file", str(_HERE / "compose.yaml"), "build"],
        env=environment, capture_output=True, text=True, timeout=_SECONDS_TO_BUILD,
    )  # fmt: skip
    assert done.returncode == 0, f"the stand-ins were not built:\n{(done.stdout + done.stderr)[-6000:]}"


def _recipe_of(engine: ContainerHost, image: str) -> str | None:
    client = docker.DockerClient(engine.host, timeout=60)
    try:
        return str(client.images.get(image).labels.get(base.RECIPE_LABEL))
    except docker.errors.ImageNotFound:
        return None
    finally:
        client.close()


def _mongod() -> Path:
    private = Layout.from_text(os.environ.get("DEVSTACK_DIR") or DEFAULT_BASE).mongod
    found = private if private.exists() else shutil.which("mongod")
    assert found, f"there is no mongod, neither {private} nor on PATH: devstack/devstack install"
    return Path(found).resolve()
