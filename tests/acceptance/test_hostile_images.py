"""Images that nobody would build on purpose: each becomes a job that does what it can, or a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.test_ingest import xml
from tests.support.girder_site import CANCELED, ERROR, SUCCESS, wait_until
from tests.support.images import build_and_push_image

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

_NOISE = (
    b"\x1b[31mred\x1b[0m \xff\xfe\x00\x01 {not} [json] <not xml>\r\x1b]0;title\x07\n"
    + b"x" * 3_000_000
    + b"\n"
)
#: Around all that it says about itself; a run shows what it was given.
_HOSTILE_ENTRY = r"""#!/bin/sh
case "$1" in --list_cli) cat noise list.json noise; exit 0 ;; esac
case "$2" in --xml) cat noise "$1" noise; exit 0 ;; esac
printf '\033[31mred\033[0m \377\376\r\n'
(setsid sleep MARKER </dev/null >/dev/null 2>&1 &)
printf 'ODD=[%s]\nLINES=[%s]\nAFTER=[%s]\n' "$ODD" "$LINES" "$AFTER"
[ "$3" = deaf ] && { trap '' TERM INT HUP; echo "deaf now"; while :; do sleep 1; done; }
touch /opt/cli/mine 2>&1; pwd
"""
_ENV = {"ODD": "a  b \"c\" $HOME `id` \\ 'd'", "LINES": "first\nsecond", "AFTER": "after"}
_LABELS = {
    "org.example/a.b c": "x\n\"y\" 'é' \x1b[31m $(id)",
    "$where": "1",
    "": "no name",
    "nul\\0": "back\\slash",
    "description": "<b>bold</b>\n" + "long " * 20_000,
    "x" * 500: "y",
}


@pytest.fixture(scope="module")
def marker() -> str:
    """How long the daemon sleeps: no other process does so."""
    return f"{800000 + os.getpid()}"


@pytest.fixture
def hostile(site: Site, marker: str) -> str:
    """The reference of the image, which is made and ingested once."""
    if not hasattr(site, "hostile"):
        image = build_and_push_image(
            site.stack["DEVSTACK_REGISTRY"],
            f"hostile/{uuid.uuid4().hex[:8]}:1",
            {
                "/opt/cli/entry.sh": _HOSTILE_ENTRY.replace("MARKER", marker),
                "/opt/cli/noise": _NOISE,
                "/opt/cli/list.json": '{"Odd": {"type": "python"}}',
                "/opt/cli/Odd": xml("Odd"),
            },
            entrypoint=["./entry.sh"],
            workdir="/opt/cli",
            env=_ENV,
            labels=_LABELS,
        )
        job = site.girder.ingest(image)
        assert "1 CLI registered: Odd" in "".join(job["log"]), job["log"][-20:]
        site.hostile = image  # type: ignore[attr-defined]
    return str(site.hostile)  # type: ignore[attr-defined]


def _daemons(marker: str) -> list[str]:
    return subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True, text=True).stdout.split()


def test_noise_labels_and_variables_do_no_harm(site: Site, hostile: str, marker: str) -> None:
    job = site.girder.run(site.girder.cli(hostile, "Odd"), text="x")
    ended = site.girder.wait_for_end(job, seconds=90)
    log = "".join(ended["log"])
    assert ended["status"] == SUCCESS, log[-2000:]
    assert "".join(f"{name}=[{value}]\n" for name, value in _ENV.items()) in log
    assert "Read-only file system" in log
    assert "\n/opt/cli\n" in log
    item = site.girder.call("GET", f"item/{site.girder.cli(hostile, 'Odd')}")
    tag = site.girder.call("GET", f"folder/{item['folderId']}")
    assert tag["meta"]["digest"].startswith(hostile.rpartition(":")[0])
    wait_until("the daemon is gone", lambda: not _daemons(marker), seconds=10)


def test_an_image_that_is_deaf_to_every_polite_signal_is_cancelled(
    site: Site, hostile: str, marker: str
) -> None:
    job = site.girder.run(site.girder.cli(hostile, "Odd"), text="deaf")
    wait_until("it is deaf", lambda: "deaf now" in site.girder.log(job), seconds=60)
    site.girder.cancel(job)
    assert site.girder.wait_for_end(job, seconds=60)["status"] == CANCELED
    slurm_job = site.worker.slurm_job_id(job)
    wait_until("Slurm has ended it", lambda: site.slurm_state(slurm_job) == "CANCELLED", seconds=40)
    wait_until("its processes are gone", lambda: not _daemons(marker), seconds=20)


_RUN = """
import json, sys
from girder_worker.app import app
from girder_worker.docker.tasks import docker_run
answers = []
for options in json.loads(sys.argv[2]):
    try:
        answers.append(docker_run.delay(sys.argv[1], pull_image=False, **options).get(timeout=90))
    except Exception as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def _docker_run(site: Site, image: str, *options: dict[str, Any]) -> list[Any]:
    """What a Celery client gets of `docker_run` with each of these options."""
    names = ("GIRDER_WORKER_BROKER", "GIRDER_WORKER_BACKEND")
    done = subprocess.run(
        [sys.executable, "-c", _RUN, image, json.dumps(options)],
        env=os.environ | {name: site.stack[name] for name in names},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_an_image_that_starts_nothing_by_itself_runs_what_it_is_told_and_else_says_so(site: Site) -> None:
    registry = site.stack["DEVSTACK_REGISTRY"]
    image = build_and_push_image(registry, f"hostile/nothing:{uuid.uuid4().hex[:8]}", {"/x": "y"})
    nothing, told, missing = _docker_run(
        site, image, {}, {"container_args": ["/bin/echo", "told"]}, {"container_args": ["--list_cli"]}
    )
    assert told == []
    for sentence in (nothing, missing):
        assert isinstance(sentence, str), sentence
        assert "Traceback" not in sentence
    assert "exit" in missing or "127" in missing, missing
    job = site.girder.ingest(image, expect=ERROR)
    log = "".join(job["log"])
    assert "Traceback" not in log
    assert image in log


def test_an_image_without_a_shell_runs(site: Site) -> None:
    registry = site.stack["DEVSTACK_REGISTRY"]
    layout = {"/bin/busybox.txt": "no applets"}
    image = build_and_push_image(
        registry, f"hostile/bare:{uuid.uuid4().hex[:8]}", layout, ["/bin/busybox", "true"], applets=False
    )
    assert _docker_run(site, image, {}, {"container_args": ["x"]}) == [[], []]
