"""A job leaves 100,000 output files, of which Girder takes some dozens a second: nobody else waits for that."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import CANCELED, SUCCESS, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

NUMBER = 100_000
PARTS = {f"part-{number}.txt": len(f"part {number}\n") for number in range(1, NUMBER + 1)}
#: What a record of 100,000 uploads may cost beside what the worker needs anyway.
MORE_MEMORY_MB = 90


def _run(site: Site, file: str, count: int) -> tuple[str, str]:
    """A job that leaves so many files, and the folder that they go to."""
    target = site.girder.new_folder()
    params = {"first": file, "second": file, "outputDir": "parts", "outputDir_folder": target}
    return site.girder.run(site.sum, count=count, **params), target


def _record(site: Site, job: str) -> Path:
    for path in site.worker.root.glob("record/[!.]*/state.jsonl"):
        if job in path.read_text(encoding="utf-8"):
            return path.parent
    msg = f"No record of job {job}."
    raise AssertionError(msg)


def _entries(record: Path) -> list[dict[str, str]]:
    lines = (record / "state.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _keys(record: Path, event: str) -> list[str]:
    return [entry["key"] for entry in _entries(record) if entry["event"] == event]


def _write_as_uploaded(record: Path, keys: list[str]) -> None:
    with (record / "state.jsonl").open("a", encoding="utf-8") as file:
        for key in keys:
            for entry in (
                {"event": "upload", "key": key, "upload_id": "5" * 24},
                {"event": "upload_at", "key": key, "offset": PARTS[key.rpartition("/")[2]]},
                {"event": "uploaded", "key": key},
            ):
                file.write(json.dumps(entry) + "\n")


def _items(site: Site, folder: str) -> Counter[tuple[str, int]]:
    items = site.girder.call("GET", "item", params={"folderId": folder, "limit": 0})
    return Counter((item["name"], item["size"]) for item in items)


def _memory_mb(site: Site, field: str) -> float:
    assert site.worker.process is not None
    status = Path(f"/proc/{site.worker.process.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


@pytest.mark.fault("100,000 output files, and the worker killed among them", phases=("outputs uploading",))
def test_a_hundred_thousand_outputs_hold_nobody_up_and_each_comes_once(site: Site, folder: str) -> None:
    site.worker.restart()
    memory_mb = _memory_mb(site, "VmRSS")
    file = site.girder.upload(folder, "in.txt", b"1\n")
    # With these, as many as bring their outputs at a time.
    others = [_run(site, file, 2000) for _ in range(3)]
    job, target = _run(site, file, NUMBER)
    for busy in (*(other for other, _ in others), job):
        wait_until(
            "it is uploading",
            lambda busy=busy: site.worker.slurm_job_id(busy) and _keys(_record(site, busy), "uploaded"),
            seconds=90,
            every=0.5,
        )
    site.girder.log_at_end(site.run_toy(folder), seconds=45)

    for other, where in others:
        path = _record(site, other)
        site.girder.cancel(other)
        site.girder.wait_for(other, CANCELED)
        wait_until("it is cleaned up", lambda path=path: not path.exists(), seconds=30)
        there = _items(site, where)
        assert 0 < len(there) < 2000
        assert set(there.values()) == {1}

    site.worker.kill()
    record = _record(site, job)
    (attempt,) = [entry["token"] for entry in _entries(record) if entry["event"] == "attempt"]
    run = site.worker.root / "run" / attempt
    assert sum(1 for _ in (run / "volume" / "parts").iterdir()) == NUMBER + 3
    # Girder would take the better part of an hour: all but the last some are written down as being there.
    begun = {key.rpartition("/")[2] for key in _keys(record, "upload")}
    prefix = _keys(record, "uploaded")[0].rpartition("/")[0]
    skipped = [name for name in PARTS if name not in begun][200:]
    _write_as_uploaded(record, [f"{prefix}/{name}" for name in skipped])
    site.worker.start()
    site.girder.log_at_end(site.run_toy(folder), seconds=45)
    ended = site.girder.wait_for_end(job, seconds=60)
    assert ended["status"] == SUCCESS, ended["log"]
    # While its files are removed, which takes half a minute on some disks.
    site.girder.log_at_end(site.run_toy(folder), seconds=45)
    wait_until("it is cleaned up", lambda: not record.exists(), seconds=120)
    assert not (run / "volume").exists()
    expected = {name: PARTS[name] for name in PARTS.keys() - set(skipped)} | {"both.txt": 4, "empty.txt": 0}
    assert _items(site, target) == Counter(expected.items())
    peak_mb = _memory_mb(site, "VmHWM")
    logger.info("The worker has %.0f MB after its start, and had %.0f MB at most", memory_mb, peak_mb)
    assert peak_mb < memory_mb + MORE_MEMORY_MB
