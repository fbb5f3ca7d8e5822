"""Thousands of jobs that wait in Slurm: what they cost the worker and the scheduler, and how soon a killed worker has them back.

One job is brought as far as Slurm in a partition that is closed. Its record and run directory are then copied under other
names, each with a Slurm job of its own, so that the worker finds what it would have written itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.girder_site import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.site import Bench
    from tests.support.worker import Worker

_TAKEN_UP = re.compile(r"(\d+) unfinished jobs taken up")
_HELD_JOB = "#!/bin/bash\n#SBATCH --mem=1 --output=/dev/null\nexit 1\n"
_PARALLEL_SUBMITS = 16
_QUIET_SECONDS = 2.0
_LISTINGS = ("REQUEST_JOB_INFO", "REQUEST_JOB_INFO_SINGLE", "REQUEST_JOB_USER_INFO")


@dataclass(frozen=True)
class Model:
    """The one job that all others are copies of."""

    record: Path
    run: Path
    slurm_job_id: str


def standing(bench: Bench, cli: str, *, window_seconds: float) -> dict[str, Any]:
    """Memory, threads, processor time, queries and recovery with 0, 1000, 5000 and 10,000 jobs."""
    worker = bench.worker("standing")
    with bench.closed_partition():
        try:
            return _measure(bench, worker, cli, window_seconds)
        finally:
            worker.kill()
            bench.cancel_all()


def _measure(bench: Bench, worker: Worker, cli: str, window_seconds: float) -> dict[str, Any]:
    worker.start()
    empty = _rss_kib(worker)
    job = bench.run_cli(cli)
    wait_until("it is in Slurm", lambda: worker.slurm_job_id(job), seconds=60)
    threads_at_1 = worker.threads()
    worker.kill()
    model = model_of(next(worker.root.glob("record/[!.]*")))
    result: dict[str, Any] = {"threads_at_1": threads_at_1}

    copy_of(bench, model, 999, in_slurm=True)
    seconds_to_take_up(worker)
    _settle(bench)
    result["idle_cpu_percent_at_1000"] = round(_cpu_percent(worker, window_seconds), 1)
    worker.kill()

    copy_of(bench, model, 4000, in_slurm=True)
    seconds_to_take_up(worker)
    before, begun = bench.scheduler_calls(), time.monotonic()
    busy = _cpu_percent(worker, max(60.0, window_seconds))
    minutes = (time.monotonic() - begun) / 60
    after = bench.scheduler_calls()
    result["queries_per_minute_at_5000"] = round(
        sum(after.get(name, 0) - before.get(name, 0) for name in _LISTINGS) / minutes, 1
    )
    result["threads_at_5000"] = worker.threads()
    result["kib_per_live_job"] = round((_rss_kib(worker) - empty) / 5000, 1)
    # Girder is being told meanwhile that they wait, and why.
    result["busy_cpu_percent_at_5000"] = round(busy, 1)
    worker.kill()

    result["recovery_seconds_at_5000"] = round(seconds_to_take_up(worker), 2)
    worker.kill()
    # Slurm has as many as `max_submitted` allows; the others wait for a place.
    copy_of(bench, model, 5000, in_slurm=False)
    result["recovery_seconds_at_10000"] = round(seconds_to_take_up(worker), 2)
    return result


def model_of(record: Path) -> Model:
    """The job of this record, which is in Slurm."""
    entries = [json.loads(line) for line in (record / "state.jsonl").read_text(encoding="utf-8").splitlines()]
    token = next(e["token"] for e in entries if e["event"] == "attempt")
    run = record.parents[1] / "run" / token
    return Model(record, run, next(e["slurm_job_id"] for e in entries if e["event"] == "submitted"))


def copy_of(bench: Bench, model: Model, count: int, *, in_slurm: bool, submitted: bool = False) -> None:
    """So many more jobs like it, as the worker itself would have left them when it was killed.

    With `submitted` the records say that they are in Slurm, where they are not.
    """
    names = [(uuid.uuid4().hex, f"{model.run.name[:-20]}{uuid.uuid4().hex[:20]}") for _ in range(count)]
    ids = [""] * count
    if in_slurm:

        def submit(token: str) -> str:
            return bench.slurm("sbatch", "--parsable", f"--job-name={token}", stdin=_HELD_JOB).strip()

        with ThreadPoolExecutor(_PARALLEL_SUBMITS) as pool:
            ids = list(pool.map(submit, [token for _, token in names]))
    lines = (model.record / "state.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if not in_slurm and not submitted:
        lines = lines[: next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "intent")]
    texts = {
        "message.json": (model.record / "message.json").read_text(encoding="utf-8"),
        "state.jsonl": "".join(lines),
        "owner.1": (model.record / "owner.1").read_text(encoding="utf-8"),
    }
    plan = [
        {"task": task, "token": token, "slurm_job_id": slurm_job_id}
        for (task, token), slurm_job_id in zip(names, ids, strict=True)
    ]
    given = {
        "records": str(model.record.parent),
        "runs": str(model.run.parent),
        "old": {
            "task": model.record.name,
            "token": model.run.name,
            "slurm_job_id": f'"{model.slurm_job_id}"',
        },
        "texts": texts,
        "plan": plan,
    }
    subprocess.run(
        bench.stack.as_user(["/usr/bin/python3", "-c", _COPIER]),
        input=json.dumps(given),
        text=True,
        check=True,
    )


#: Run as the user who owns the jobs root.
_COPIER = r"""
import json, os, sys
given = json.load(sys.stdin)
old = given["old"]
os.umask(0o077)
for one in given["plan"]:
    record = os.path.join(given["records"], one["task"])
    os.mkdir(record)
    os.makedirs(os.path.join(given["runs"], one["token"], "volume"))
    for name, text in given["texts"].items():
        text = text.replace(old["task"], one["task"]).replace(old["token"], one["token"])
        if one["slurm_job_id"]:
            text = text.replace(old["slurm_job_id"], json.dumps(one["slurm_job_id"]))
        with open(os.path.join(record, name), "w") as handle:
            handle.write(text)
"""


def seconds_to_take_up(worker: Worker) -> float:
    """Starts it; seconds from the start of its supervisor, which reads the records, until it has all of them.

    Both moments are lines of its log with times of a millisecond.
    """
    begun = worker.log.stat().st_size
    worker.start()
    text = worker.log.read_bytes()[begun:].decode(errors="replace")
    assert _TAKEN_UP.search(text), text[-2000:]
    return _seconds_between(text)


def _seconds_between(text: str) -> float:
    stamps = [
        time.mktime(time.strptime(found[1], "%Y-%m-%d %H:%M:%S")) + int(found[2]) / 1000
        for line in text.splitlines()
        if ("taken up" in line or "Taken over" in line)
        and (found := re.match(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})", line))
    ]
    return stamps[-1] - stamps[0]


def _settle(bench: Bench) -> None:
    """Returns when Girder has been told of every job that it waits, and why."""
    seen = [bench.girder_calls()]

    def is_quiet() -> bool:
        time.sleep(_QUIET_SECONDS)
        seen.append(bench.girder_calls())
        return seen[-1] == seen[-2]

    wait_until("Girder knows of all jobs", is_quiet, seconds=600)


def _cpu_percent(worker: Worker, seconds: float) -> float:
    """Of one core, over this time."""
    assert worker.process is not None
    return psutil.Process(worker.process.pid).cpu_percent(seconds)


def _rss_kib(worker: Worker) -> float:
    assert worker.process is not None
    return psutil.Process(worker.process.pid).memory_info().rss / 1024
