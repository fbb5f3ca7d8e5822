"""A second Girder on the stack's MongoDB and broker, with our distribution installed beside it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo

import girder_worker_singularity
import girder_worker_slurm
from tests.support.girder_site import GirderSite, wait_until
from tests.support.services import answers, end, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stack import Stack


def server_environment(stack: Stack, directory: Path) -> dict[str, str]:
    """The environment of Girder's own processes, with our packages and their entry points beside theirs.

    As `pip install --no-deps` does it: nothing else comes along from where the packages are.
    """
    for package in (girder_worker_singularity, girder_worker_slurm):
        (directory / package.__name__).symlink_to(Path(package.__file__).parent)
    information = directory / "girder_worker_slurm-0.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: girder-worker-slurm\nVersion: 0.0\n")
    points = importlib.metadata.distribution("girder-worker-slurm").read_text("entry_points.txt")
    (information / "entry_points.txt").write_text(str(points))
    names = (
        "GIRDER_MONGO_URI",
        "GIRDER_NOTIFICATION_REDIS_URL",
        "GIRDER_WORKER_BROKER",
        "GIRDER_WORKER_BACKEND",
    )
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "PYTHONPATH": str(directory),
        "PYTHONUNBUFFERED": "1",
        "C_FORCE_ROOT": "1",
        # As in a DSA container, which has the directory of SIFs mounted.
        "SIF_IMAGE_PATH": str(directory / "SIF"),
        **{name: stack[name] for name in names},
    }


@contextmanager
def running_girder(stack: Stack, environment: dict[str, str], log: Path) -> Iterator[str]:
    """The address of the API of a Girder that runs for as long as the block lasts."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api/v1"
    program = str(Path(stack["GIRDER_PYTHON"]).with_name("girder"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", "--mode", "production", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(
            "Girder answers",
            lambda: answers(f"{api}/system/version"),
            seconds=90,
            give_up=lambda: log.read_text() if process.poll() is not None else "",
        )
        yield api
    finally:
        end(process)


@contextmanager
def girder_with_plugin(stack: Stack, directory: Path, **variables: str) -> Iterator[GirderSite]:
    """A new Girder that has the plugin, as its administrator sees it; its database goes when the block ends.

    `variables` are in its environment.
    """
    name = f"plugin-{uuid.uuid4().hex[:8]}"
    database = f"{stack['GIRDER_MONGO_URI'].rpartition('/')[0]}/{name}"
    environment = {**server_environment(stack, directory), "GIRDER_MONGO_URI": database, **variables}
    try:
        with running_girder(stack, environment, directory / "girder.log") as api:
            yield _set_up(replace(stack, env={**stack.env, "GIRDER_API_URL": api}), directory / "assetstore")
    finally:
        with pymongo.MongoClient[dict[str, object]](database) as client:
            client.drop_database(name)


def _set_up(stack: Stack, assetstore: Path) -> GirderSite:
    """Administrator, assetstore and task folder."""
    site = GirderSite(stack)
    person = {"firstName": "A", "lastName": "B", "email": "admin@example.org"}
    account = {"login": stack["GIRDER_ADMIN_LOGIN"], "password": stack["GIRDER_ADMIN_PASSWORD"]}
    site.call("POST", "user", params={**account, **person})
    site.login()
    site.call("POST", "assetstore", params={"name": "A", "type": 0, "root": str(assetstore)})
    tasks = site.call("POST", "collection", params={"name": "Tasks", "public": "true"})
    parent = {"parentType": "collection", "parentId": tasks["_id"]}
    folder = site.call("POST", "folder", params={**parent, "name": "Tasks", "public": "true"})
    set_setting(site, "slicer_cli_web.task_folder", folder["_id"])
    return site


def set_setting(site: GirderSite, key: str, value: object) -> Any:
    """Sets one of Girder's settings; the answer, also if it is refused."""
    return site.call("PUT", "system/setting", ok=False, data={"key": key, "value": value})
