"""Who waits for an image sees how many bytes of it are there."""

from __future__ import annotations

import os
import re
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import FINAL, SUCCESS, wait_until
from tests.support.images import build_and_push_image
from tests.support.slow_link import SlowLink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(240)]

XML = (
    "<executable><category>T</category><title>Large</title><description>D</description>"
    "<parameters><label>A</label><description>A</description><string><name>text</name><label>T</label>"
    "<description>T</description><longflag>text</longflag><default>x</default></string></parameters></executable>"
)
ENTRY = f"""#!/bin/sh
case "$*" in
  --list_cli) echo '{{"Large": {{}}}}' ;;
  *--xml) echo '{XML}' ;;
esac
"""


@pytest.fixture
def slow_registry(site: Site) -> Iterator[str]:
    with SlowLink(f"http://{site.stack['DEVSTACK_REGISTRY']}", bytes_per_second=2e6) as link:
        registry = f"127.0.0.1:{link.port}"
        site.worker.restart(f"[singularity]\nplain_http_registries = {registry}\n")
        yield registry


def _messages(site: Site, job: str) -> list[str]:
    """All that the job's progress said until its end."""
    seen: list[str] = []

    def look() -> bool:
        found = site.girder.job(job)
        seen.append(str((found.get("progress") or {}).get("message")))
        return found["status"] in FINAL

    wait_until("the job has ended", look, seconds=90)
    assert site.girder.status(job) == SUCCESS, site.girder.log(job)
    return list(dict.fromkeys(seen))


def _bytes(messages: list[str]) -> list[int]:
    return [int(found[1]) for text in messages if (found := re.search(r"fetching (\d+) of 1[12] MB", text))]


def test_an_ingest_and_a_job_show_the_bytes_of_their_image(site: Site, slow_registry: str) -> None:
    girder = site.girder
    name = f"slow/{uuid.uuid4().hex[:8]}:1"
    build_and_push_image(
        site.stack["DEVSTACK_REGISTRY"],
        name,
        {"/opt/entry.sh": ENTRY, "/opt/noise": os.urandom(11_000_000)},
        entrypoint=["/opt/entry.sh"],
    )
    image = f"{slow_registry}/{name}"
    folder = girder.call("GET", "system/setting", params={"key": "slicer_cli_web.task_folder"})
    job = girder.call("PUT", "slicer_cli_web/docker_image", params={"name": image, "folder": folder})
    ingest = _messages(site, job["_id"])
    assert len(_bytes(ingest)) >= 2, ingest
    assert _bytes(ingest) == sorted(_bytes(ingest))
    assert any(text.startswith(f"0 of 1 images done; now {image} (fetching ") for text in ingest)
    for path in site.worker.sif.glob("*slow*.sif*"):
        path.unlink()
    run = _messages(site, girder.run(girder.cli(image, "Large"), text="x"))
    assert len(_bytes(run)) >= 2, run
    assert any(text.startswith(f"Image {image}: fetching ") for text in run)
