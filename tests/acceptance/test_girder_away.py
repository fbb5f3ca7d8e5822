"""Girder is stopped for five minutes, as for an upgrade, and the worker dies meanwhile: jobs lose nothing but time.

`GIRDER_SLURM_AWAY_MINUTES` makes it shorter, or longer.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from kombu import Connection

from tests.support.girder_site import ERROR, SUCCESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.acceptance.conftest import Site
    from tests.support.slow_link import SlowLink

logger = logging.getLogger(__name__)

MINUTES = float(os.environ.get("GIRDER_SLURM_AWAY_MINUTES", "5"))
#: Half a minute until anybody tries again, which wakes all others, and the transfers that were cut.
ALL_ENDED_SECONDS = 75.0
FILES = 300
#: A job that is still running when Girder is back.
LONG_SECONDS = int(MINUTES * 60) + 60
LARGE_BYTES = 60_000_000

pytestmark = [pytest.mark.girder, pytest.mark.timeout(MINUTES * 60 + 400)]


@pytest.fixture
def stoppable(site: Site) -> Iterator[Site]:
    """The site, whose Girder is there again for the next test whatever becomes of this one."""
    yield site
    site.stack.service("start", "girder")


@contextmanager
def _message_held_back(site: Site) -> Iterator[Callable[[], None]]:
    """The one task that waits in RabbitMQ, until the worker may have it."""
    with Connection(site.stack["GIRDER_WORKER_BROKER"]) as connection, connection.channel() as channel:
        message = wait_until("it is there", lambda: channel.basic_get("celery"), seconds=20)
        yield lambda: channel.basic_reject(message.delivery_tag, requeue=True)


def _events(site: Site, job: str) -> list[str]:
    return [entry["event"] for entry in site.worker.entries_of(job)]


def _has_come_to(site: Site, job: str, event: str, *, seconds: float = 60.0) -> None:
    wait_until(f"job {job} has come to {event}", lambda: event in _events(site, job), seconds=seconds)


def _records_that_girder_was_not_asked_about(site: Site) -> int:
    return sum(
        all(entry["event"] == "accepted" for entry in entries) for entries in site.worker.entries().values()
    )


@contextmanager
def _jobs_in_all_phases(site: Site, folder: str, target: str, slow: SlowLink) -> Iterator[dict[str, str]]:
    """One job in each phase; those that have not been admitted, or are pending, may go on after the block."""
    girder = site.girder
    large = girder.upload(folder, "large.bin", b"0123456789" * (LARGE_BYTES // 10))
    site.worker.stop()
    jobs = {"message received": site.run_toy(folder, text="message received")}
    with _message_held_back(site) as release:
        site.worker.start()
        jobs["running"] = site.run_toy(folder, text="running", sleep=LONG_SECONDS)
        jobs["ended"] = site.run_toy(folder, text="ended", sleep=40)
        jobs["status reporting"] = site.run_toy(folder, sleep=40, code=3)
        for phase in ("running", "ended", "status reporting"):
            wait_until("its log is there", lambda phase=phase: "second 1\n" in girder.log(jobs[phase]))
        file = girder.upload(folder, "in.txt", b"1\n")
        params = {"first": file, "second": file, "outputDir": "parts", "outputDir_folder": target}
        jobs["outputs uploading"] = girder.run(site.sum, count=FILES, **params)
        _has_come_to(site, jobs["outputs uploading"], "started")
        with site.partition_down("normal"):
            jobs["pending"] = site.run_toy(folder, text="pending", sleep=3)
            _has_come_to(site, jobs["pending"], "submitted")
            # Half a minute for the large file.
            slow.bytes_per_second = LARGE_BYTES / 30
            copy = {"outputFile": "copy.bin", "outputFile_folder": folder}
            jobs["inputs staging"] = girder.run(site.toy, inputFile=large, **copy)
            partial = "run/*/volume/inputs/*/.large.bin.part"
            wait_until("it is being fetched", lambda: list(site.worker.root.glob(partial)))
            _has_come_to(site, jobs["outputs uploading"], "uploaded")
            yield jobs
        release()


def _ended_once(site: Site, phase: str, job: str) -> None:
    ended = site.girder.wait_for_end(job, seconds=ALL_ENDED_SECONDS + 60)
    log = "".join(ended["log"])
    assert ended["status"] == (ERROR if phase == "status reporting" else SUCCESS), log
    assert len(re.findall(r"^Girder did not answer as it should for \d+ min", log, re.MULTILINE)) == 1, log
    toy = 0 if phase == "outputs uploading" else 1
    assert (log.count("toy starts"), log.count("toy ends")) == (toy, toy), log
    events = _events(site, job)
    assert (events.count("attempt"), events.count("started"), events.count("verdict")) == (1, 1, 1)


def _outputs_are_there_once(site: Site, folder: str, target: str) -> None:
    there = site.girder.files(folder)
    outputs = [data for name, data in there.items() if name.startswith("out.txt")]
    assert sorted(data.split(b"\n")[0] for data in outputs) == [
        b"text=<ended>",
        b"text=<message received>",
        b"text=<pending>",
        b"text=<running>",
    ]
    copies = [data for name, data in there.items() if name.startswith("copy.bin")]
    assert [len(data) for data in copies] == [LARGE_BYTES + len("text=<>\ninput=")]
    parts = {name: data for name, data in site.girder.files(target).items() if "part-" in name}
    assert parts == {f"part-{n}.txt": f"part {n}\n".encode() for n in range(1, FILES + 1)}


@pytest.mark.fault(
    "Girder away for five minutes, and the worker killed meanwhile",
    phases=(
        "message received",
        "inputs staging",
        "pending",
        "running",
        "ended",
        "outputs uploading",
        "status reporting",
    ),
)
def test_a_girder_that_is_away_for_minutes_delays_jobs_in_all_phases_and_nothing_else(
    stoppable: Site, folder: str, slow: SlowLink
) -> None:
    site = stoppable
    target = site.girder.new_folder()
    with _jobs_in_all_phases(site, folder, target, slow) as jobs:
        # Whatever is on its way is cut in its middle; what Girder has begun it brings to its end.
        slow.is_cut = True
        slow.cut()
        site.stack.service("stop", "girder")
        gone_at = time.monotonic()
        slow.is_cut = False
    assert _events(site, jobs["outputs uploading"]).count("uploaded") < FILES
    wait_until("the message is taken", lambda: _records_that_girder_was_not_asked_about(site) == 1)
    for phase in ("pending", "ended", "status reporting"):
        _has_come_to(site, jobs[phase], "verdict")
    _has_come_to(site, jobs["status reporting"], "delivered")
    site.worker.kill()
    site.worker.start()
    wait_until(
        "Girder has been away long enough",
        lambda: time.monotonic() - gone_at >= MINUTES * 60,
        seconds=MINUTES * 60 + 10,
        every=1.0,
        give_up=lambda: "" if site.worker.is_running else "the worker has ended",
    )
    assert _records_that_girder_was_not_asked_about(site) == 1
    assert "staged" not in _events(site, jobs["inputs staging"])
    assert _events(site, jobs["running"])[-1] == "started"
    assert [job for job in jobs.values() if "reported" in _events(site, job)] == []

    slow.bytes_per_second = 0.0
    site.stack.service("start", "girder")
    back_at = time.monotonic()
    took = {}
    for phase, job in sorted(jobs.items(), key=lambda pair: pair[0] == "running"):
        _ended_once(site, phase, job)
        took[phase] = time.monotonic() - back_at
    logger.info("Ended after so many seconds: %s", took)
    assert max(seconds for phase, seconds in took.items() if phase != "running") < ALL_ENDED_SECONDS, took
    seconds = re.findall(r"second (\d+)\n", site.girder.log(jobs["running"]))
    assert seconds == [str(second) for second in range(1, LONG_SECONDS + 1)]
    assert "exit code 3" in site.girder.log(jobs["status reporting"])
    _outputs_are_there_once(site, folder, target)
    assert site.tasks_in_rabbitmq() == 0
