"""How old a line is when Girder has it: one writing job, and forty.

    benchmarks/live_log.py [--jobs 1 40] [--seconds 40]

Needs the stack (devstack/devstack up) and no other worker on its queue. Each job writes a line a second with the time at
which it was written; Girder's database is looked at every 50 ms, which is part of what is measured. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.girder_site import SUCCESS, GirderSite
from tests.support.stack import Stack
from tests.support.toy_cli import push_toy_cli
from tests.support.worker import Worker

if TYPE_CHECKING:
    from benchmarks.site import Bench

#: Run by Girder's Python, which has pymongo: prints job, line and its age for every line when it is first seen.
WATCHER = r"""
import re, sys, time
from bson import ObjectId
from pymongo import MongoClient
jobs = [ObjectId(one) for one in sys.argv[2].split(",")]
logs = MongoClient(sys.argv[1]).get_default_database().job
until, seen = time.monotonic() + float(sys.argv[3]), {}
uptime = lambda: float(open("/proc/uptime").read().split()[0])
while time.monotonic() < until:
    found = list(logs.find({"_id": {"$in": jobs}}, {"log": 1, "status": 1}))
    now = uptime()
    for job in found:
        times = re.findall(r"written at ([0-9.]+)", "".join(job.get("log") or []))
        for text in times[seen.get(job["_id"], 0):]:
            print(job["_id"], text, round(now - float(text), 3), flush=True)
        seen[job["_id"]] = len(times)
    if all(job["status"] > 2 for job in found):
        break
    time.sleep(0.05)
"""


def measure(girder: GirderSite, toy: str, folder: str, *, jobs: int, seconds: int) -> dict[str, float]:
    """Ages in seconds of the lines that were written while all jobs wrote."""
    file = girder.upload(folder, f"in-{uuid.uuid4().hex[:6]}.txt", b"hello\n")
    ids = [
        girder.run(
            toy,
            inputFile=file,
            outputFile=f"out-{uuid.uuid4().hex[:6]}.txt",
            outputFile_folder=folder,
            sleep=seconds,
            mode="clock",
        )
        for _ in range(jobs)
    ]
    stack = girder.stack
    watched = subprocess.run(
        [stack["GIRDER_PYTHON"], "-c", WATCHER, stack["GIRDER_MONGO_URI"], ",".join(ids), str(seconds + 60)],
        env={"PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        text=True,
    )
    failed = [job for job in ids if girder.wait_for_end(job, seconds=120)["status"] != SUCCESS]
    if failed:
        sys.exit(f"these jobs failed: {failed}")
    lines = [re.split(r"\s+", line) for line in watched.stdout.splitlines()]
    written = {job: sorted(float(at) for one, at, _ in lines if one == job) for job in ids}
    # Between the last job's third line and the first job's last but one, all forty write.
    begin, end = max(times[2] for times in written.values()), min(times[-2] for times in written.values())
    ages = sorted(float(age) for _, at, age in lines if begin <= float(at) <= end)
    if not ages:
        sys.exit(
            f"{jobs} jobs of {seconds} s never wrote all at the same time on this machine: give them more --seconds"
        )
    return {
        "jobs": jobs,
        "lines": len(ages),
        "median": statistics.median(ages),
        "p95": ages[int(len(ages) * 0.95)],
        "max": ages[-1],
    }


def lines_of_writing_jobs(bench: Bench, jobs: int, *, seconds: int) -> dict[str, Any]:
    """How old a line is when Girder has it, while so many jobs write one a second each."""
    worker = bench.worker("log").start()
    try:
        image = push_toy_cli(bench.stack["DEVSTACK_REGISTRY"], f"tests/toy:{uuid.uuid4().hex[:6]}")
        bench.girder.ingest(image)
        toy, folder = bench.girder.cli(image, "Toy"), bench.girder.new_folder()
        found = measure(bench.girder, toy, folder, jobs=jobs, seconds=seconds)
    finally:
        worker.stop()
    return {
        f"line_age_seconds_{name}_of_{jobs}_jobs": round(found[name], 2) for name in ("median", "p95", "max")
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 40])
    parser.add_argument("--seconds", type=int, default=40)
    given = parser.parse_args()
    stack = Stack.read()
    girder = GirderSite(stack).login()
    root = stack.shared / f"benchmark-{uuid.uuid4().hex[:8]}"
    worker = Worker(stack, root, root.with_name(f"{root.name}-sif"), poll_seconds=15.0).start()
    try:
        image = push_toy_cli(stack["DEVSTACK_REGISTRY"], f"tests/toy:{uuid.uuid4().hex[:6]}")
        girder.ingest(image)
        toy, folder = girder.cli(image, "Toy"), girder.new_folder()
        for jobs in given.jobs:
            print(json.dumps(measure(girder, toy, folder, jobs=jobs, seconds=given.seconds)), flush=True)
    finally:
        worker.stop()
        for path in stack.shared.glob(f"{root.name}*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
