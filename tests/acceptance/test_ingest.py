"""Images become CLIs in a stock Girder, several at once and again; and SIFs that nobody uses go."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.support.girder_site import CANCELED, ERROR, SUCCESS, wait_until
from tests.support.images import build_and_push_image

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]

DAY = 86400.0
ENTRY = """#!/bin/sh
echo "Warning: <this> {is} noise" >&2
case "$1" in
  --list_cli) echo "starting {up}"; cat list.json; exit 0 ;;
esac
cli=$1
case "$2" in
  --xml|--json|--yaml) echo "Starting up ..."; cat "$cli"; echo; echo "all done"; exit 0 ;;
esac
shift
echo "$cli says $*"
"""


def xml(title: str) -> str:
    return (
        f"<executable><category>Test</category><title>{title}</title><description>A CLI</description>"
        "<parameters><label>All</label><description>All</description>"
        "<string><name>text</name><label>Text</label><description>Said</description>"
        "<longflag>text</longflag><default>x</default></string></parameters></executable>"
    )


JSON = {
    "title": "From JSON",
    "description": "A CLI",
    "parameter_groups": [
        {
            "label": "All",
            "description": "All",
            "parameters": [
                {
                    "type": "string",
                    "name": "text",
                    "label": "Text",
                    "description": "Said",
                    "longflag": "text",
                    "default": "x",
                }
            ],
        }
    ],
}
YAML = """title: From YAML
description: A CLI
parameter_groups:
  - label: All
    description: All
    parameters:
      - type: string
        name: text
        label: Text
        description: Said
        longflag: text
        default: x
"""


@dataclass
class Ingest:
    """A repository of a test's own and what Girder has of it."""

    site: Site
    repository: str

    def push(self, tag: str, clis: dict[str, dict[str, Any]], texts: dict[str, str], **labels: str) -> str:
        """The reference of a new image with these CLIs."""
        files = {f"/opt/cli/{name}": text for name, text in texts.items()}
        return build_and_push_image(
            self.site.stack["DEVSTACK_REGISTRY"],
            f"{self.repository}:{tag}",
            {"/opt/cli/entry.sh": ENTRY, "/opt/cli/list.json": json.dumps(clis), **files},
            entrypoint=["./entry.sh"],
            workdir="/opt/cli",
            labels=labels,
        )

    def __call__(self, *images: str, expect: int = SUCCESS, pull: bool = False) -> dict[str, Any]:
        """The ended ingest job."""
        girder = self.site.girder
        folder = girder.call("GET", "system/setting", params={"key": "slicer_cli_web.task_folder"})
        params = {"name": json.dumps(list(images)), "folder": folder, **({"pull": "true"} if pull else {})}
        job = girder.call("PUT", "slicer_cli_web/docker_image", params=params)
        ended = girder.wait_for_end(job["_id"], seconds=120)
        assert ended["status"] == expect, girder.log(job["_id"])
        return {**ended, "text": girder.log(job["_id"])}

    def clis(self, image: str) -> dict[str, str]:
        """Name → id of the CLIs that Girder lists for an image."""
        listed = self.site.girder.call("GET", "slicer_cli_web/cli")
        return {cli["name"]: cli["_id"] for cli in listed if cli["image"] == image}

    def item(self, cli: str) -> dict[str, Any]:
        return self.site.girder.call("GET", f"item/{cli}")

    def tag_folder(self, cli: str) -> dict[str, Any]:
        return self.site.girder.call("GET", f"folder/{self.item(cli)['folderId']}")


@pytest.fixture
def ingest(site: Site) -> Ingest:
    return Ingest(site, f"ingest/{uuid.uuid4().hex[:8]}")


def test_several_images_at_once_and_one_that_fails(ingest):
    languages = ingest.push(
        "1",
        {
            "X": {"type": "python"},
            "J": {"desc-type": "json"},
            "Y": {"desc-type": "yaml", "docker-params": {"hostname": "h"}},
        },
        {"X": xml("From XML"), "J": json.dumps(JSON), "Y": YAML},
        description="three languages",
        **{"org.example.kind": "test"},
    )
    broken = ingest.push("2", {"B": {}}, {})
    absent = f"{languages.rpartition(':')[0]}:absent"
    other = ingest.push("3", {"X": {}}, {"X": xml("Other")})
    job = ingest(languages, broken, absent, other, expect=ERROR)
    assert f"{languages}: 3 CLIs registered: X, J, Y" in job["text"]
    assert f"{other}: 1 CLI registered: X" in job["text"]
    assert f"{broken} answered 'B --xml' with no XML" in job["text"]
    assert "does not have the image" in job["text"]
    assert f"could not be ingested: {broken}, {absent}" in job["text"]
    assert job["progress"]["current"] == job["progress"]["total"] == 1
    clis = ingest.clis(languages)
    assert set(clis) == {"X", "J", "Y"}
    assert ingest.clis(broken) == {}
    assert ingest.item(clis["Y"])["meta"]["docker-params"] == {"hostname": "h"}
    assert "docker-params" not in ingest.item(clis["X"])["meta"]
    tag = ingest.tag_folder(clis["X"])
    assert (tag["name"], tag["description"], tag["meta"]["org_example_kind"]) == (
        "1",
        "three languages",
        "test",
    )
    assert tag["meta"]["digest"].startswith(f"{languages.rpartition(':')[0]}@sha256:")
    for name in clis:
        run = ingest.site.girder.run(clis[name], text=f"hello {name}")
        ended = ingest.site.girder.wait_for_end(run, seconds=90)
        assert ended["status"] == SUCCESS, ingest.site.girder.log(run)
        assert f"{name} says --text hello {name}" in ingest.site.girder.log(run)


def test_another_ingest_replaces(ingest):
    image = ingest.push(
        "1",
        {"A": {"docker-params": {"hostname": "h"}}, "Old": {}},
        {"A": xml("One"), "Old": xml("Old")},
        kind="first",
    )
    ingest(image)
    before = ingest.clis(image)
    digest = ingest.tag_folder(before["A"])["meta"]["digest"]
    ingest.push("1", {"A": {}, "New": {}}, {"A": xml("Two"), "New": xml("New")}, kind="second")
    # Without `pull` the SIF that is there counts.
    ingest(image)
    assert ingest.clis(image) == before
    job = ingest(image, pull=True)
    after = ingest.clis(image)
    assert set(after) == {"A", "New"}
    assert after["A"] == before["A"]
    assert "no longer there and removed: Old" in job["text"]
    item, tag = ingest.item(after["A"]), ingest.tag_folder(after["A"])
    assert "Two" in item["description"]
    assert "docker-params" not in item["meta"]
    assert tag["meta"]["kind"] == "second"
    assert tag["meta"]["digest"] not in ("", None, digest)


@pytest.mark.parametrize(
    ("desc_type", "text"),
    [
        ("xml", "<executable><title>no end</executable>"),
        ("json", '{"title": "no description"}'),
        ("yaml", "title: [1,"),
    ],
)
def test_a_description_that_girder_cannot_read_ends_the_ingest(ingest, desc_type, text):
    image = ingest.push("1", {"A": {"desc-type": desc_type}}, {"A": text})
    job = ingest(image, expect=ERROR)
    assert f"{image}: Girder failed on the description of the CLI A (500)" in job["text"]
    assert "Traceback" not in job["text"]


def test_a_cancel_ends_a_container_that_does_not_answer(ingest):
    marker = "4242.0625"
    image = build_and_push_image(
        ingest.site.stack["DEVSTACK_REGISTRY"],
        f"{ingest.repository}:hangs",
        {"/opt/entry.sh": f"#!/bin/sh\ntrap '' TERM\nsleep {marker} & sleep {marker}\n"},
        entrypoint=["/opt/entry.sh"],
    )
    girder = ingest.site.girder
    folder = girder.call("GET", "system/setting", params={"key": "slicer_cli_web.task_folder"})
    job = girder.call("PUT", "slicer_cli_web/docker_image", params={"name": image, "folder": folder})["_id"]
    wait_until("the image is asked for its CLIs", lambda: processes(marker), seconds=90)
    girder.cancel(job)
    cancelled_at = time.monotonic()
    assert girder.wait_for_end(job, seconds=60)["status"] == CANCELED
    assert time.monotonic() - cancelled_at < 20
    wait_until("its container has ended", lambda: not processes(marker), seconds=10)
    (sif,) = ingest.site.worker.sif.glob("*hangs.sif")
    wait_until("nobody has its SIF open any more", lambda: not users_of(sif), seconds=10)


def users_of(file: Path) -> list[str]:
    """The processes that have this file open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if descriptor.readlink() == file:
                found.append(descriptor.parts[2])
    return found


def processes(word: str) -> list[str]:
    """The ids of the processes that were started with this word."""
    return subprocess.run(["pgrep", "-f", f"^sleep {word}"], capture_output=True, text=True).stdout.split()


def test_sifs_that_nobody_uses_go_and_those_of_live_jobs_stay(ingest, folder):
    site = ingest.site
    idle = ingest.push("idle", {"X": {}}, {"X": xml("Idle")})
    ingest(idle)
    sifs = {
        image: next(site.worker.sif.glob(f"*{image.rpartition('/')[2].replace(':', '_')}.sif"))
        for image in (idle,)
    }
    job = site.run_toy(folder, sleep=25)
    site.girder.wait_for(job, 2)
    wait_until("the job is in Slurm", lambda: site.worker.slurm_job_id(job))
    site.worker.stop()
    age(site, 30)
    site.worker.extra_config = "[singularity]\nprune_unused_days = 20\n"
    site.worker.start()
    wait_until("the idle SIF is gone", lambda: not sifs[idle].exists(), seconds=30)
    assert prune(site, "--max-bytes", "0")["removed"] == []
    assert site.girder.wait_for_end(job, seconds=90)["status"] == SUCCESS
    run = site.girder.run(ingest.clis(idle)["X"], text="back")
    assert site.girder.wait_for_end(run, seconds=90)["status"] == SUCCESS, site.girder.log(run)
    assert sifs[idle].exists()


def test_images_that_were_removed_from_girder_are_pruned(ingest):
    site, girder = ingest.site, ingest.site.girder
    kept, gone = (ingest.push(tag, {"X": {}}, {"X": xml("X")}) for tag in ("kept", "gone"))
    ingest(kept, gone)
    by_hand = site.worker.sif / "by_hand_1.sif"
    by_hand.write_bytes(next(site.worker.sif.glob("*kept.sif")).read_bytes())
    girder.call("DELETE", "slicer_cli_web/docker_image", params={"name": json.dumps(gone)})
    used = site.run_toy(site.girder.new_folder(), sleep=15)
    site.girder.wait_for(used, 2)
    age(site, 30)
    stranger = f"user{uuid.uuid4().hex[:8]}"
    account = {"login": stranger, "email": f"{stranger}@example.org", "firstName": "A", "lastName": "B"}
    girder.call("POST", "user", params={**account, "password": "p4ssw0rd!"})
    logged_in = requests.get(f"{girder.api}/user/authentication", auth=(stranger, "p4ssw0rd!"), timeout=30)
    refused = run_prune(site, girder.stack["GIRDER_URL"], GIRDER_TOKEN=logged_in.json()["authToken"]["token"])
    assert (refused.returncode, "not an administrator" in refused.stderr) == (1, True), refused.stderr
    assert run_prune(site, girder.api, GIRDER_API_KEY="x" * 40).returncode == 1
    key = girder.call("POST", "api_key", params={"name": "prune", "scope": "null"})["key"]
    done = run_prune(site, girder.stack["GIRDER_URL"], GIRDER_API_KEY=key)
    assert done.returncode == 0, done.stderr
    removed = [entry["image"] for entry in json.loads(done.stdout)["removed"]]
    assert gone in removed
    assert kept not in removed
    assert not list(site.worker.sif.glob("*gone.sif"))
    assert by_hand.exists()
    by_hand.unlink()
    assert site.girder.wait_for_end(used)["status"] == SUCCESS


def test_a_worker_with_a_key_removes_what_was_removed_from_girder(ingest):
    site, girder = ingest.site, ingest.site.girder
    kept, gone = (ingest.push(tag, {"X": {}}, {"X": xml("X")}) for tag in ("stays", "goes"))
    ingest(kept, gone)
    (gone_sif,) = site.worker.sif.glob("*goes.sif")
    girder.call("DELETE", "slicer_cli_web/docker_image", params={"name": json.dumps(gone)})
    site.worker.stop()
    age(site, 30)
    key = site.worker.root.with_name(f"{site.worker.root.name}.key")
    key.write_text(girder.call("POST", "api_key", params={"name": "worker", "scope": "null"})["key"] + "\n")
    shutil.chown(key, site.stack["DEVSTACK_USER"])
    key.chmod(0o600)
    site.worker.extra_config = f"[girder]\napi_url = {girder.api}\nprune_key_file = {key}\n"
    site.worker.start()
    wait_until("its SIF is gone", lambda: not gone_sif.exists(), seconds=40)
    assert list(site.worker.sif.glob("*stays.sif"))
    assert key.read_text().strip() not in site.worker.log.read_text()


def run_prune(site: Site, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`girder-singularity prune --keep-girder`, called by the worker's user with this account."""
    program = str(Path(sys.executable).with_name("girder-singularity"))
    return subprocess.run(
        site.stack.as_user([program, "prune", "--json", "--keep-girder", url]),
        env={**site.stack.user_environment(), "SIF_IMAGE_PATH": str(site.worker.sif), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def age(site: Site, days: float) -> None:
    """As if nothing in the worker's store had been made or used for that long."""
    then = time.time() - days * DAY
    for note in site.worker.sif.glob("*.sif.json"):
        note.write_text(json.dumps({**json.loads(note.read_text()), "converted_at": then}))
    for path in site.worker.sif.glob("*.sif"):
        os.utime(path, (then, then))
    for stamp in site.worker.sif.glob(".used/*"):
        stamp.write_text(f"{then}\n")


def prune(site: Site, *argv: str) -> dict[str, Any]:
    """What `girder-singularity prune` says, called by the worker's user."""
    program = str(Path(sys.executable).with_name("girder-singularity"))
    done = subprocess.run(
        site.stack.as_user([program, "prune", "--json", *argv]),
        env={**site.stack.user_environment(), "SIF_IMAGE_PATH": str(site.worker.sif)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
