"""Many short jobs: through the worker, and by sbatch alone."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.site import Bench, last_act
from tests.support.girder_site import ERROR, FINAL, SUCCESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.worker import Worker

#: sbatch commands at the same time, of the bare loop as of the worker.
PARALLEL_SUBMITS = 4
_FAILING_ONE_IN = 10
#: In Apptainer's place, for what is to be measured without it.
_NO_CONTAINER = """#!/bin/sh
[ "$1" = --version ] && echo "apptainer version 1.4.5"
exit 0
"""


def bare(bench: Bench, count: int, command: Sequence[str]) -> float:
    """Jobs per second of a loop of sbatch, four at a time, until each job has left its marker."""

    def loop(submit: Callable[..., str]) -> None:
        with ThreadPoolExecutor(PARALLEL_SUBMITS) as pool:
            list(pool.map(lambda _number: submit(), range(count)))

    return _rate(bench, count, command, loop)


def arrays(bench: Bench, count: int) -> dict[str, Any]:
    """One `sbatch --array` of all tasks beside a sbatch for each: the most that submitting them together could gain."""
    before = bare(bench, count, ["true"])
    together = _rate(bench, count, ["true"], lambda submit: submit(f"--array=0-{count - 1}"))
    after = bare(bench, count, ["true"])
    return {"array_ratio_vs_bare": round(together / ((before + after) / 2), 3)}


def _rate(
    bench: Bench, count: int, command: Sequence[str], submit_all: Callable[[Callable[..., str]], object]
) -> float:
    """Jobs per second from the first sbatch, which `submit_all` calls with options, until each job has left its marker."""
    work = bench.root / f"bare-{time.monotonic_ns()}"
    markers = work / "markers"
    subprocess.run(bench.stack.as_user(["mkdir", "-p", str(markers)]), check=True)
    script = (
        "#!/bin/bash\n#SBATCH --mem=150 --output=/dev/null\n"
        f"{shlex.join(command)} >/dev/null\n: > {shlex.quote(str(markers))}/$SLURM_JOB_ID\n"
    )
    begun = time.monotonic()
    submit_all(
        lambda *options: bench.slurm("sbatch", "--parsable", f"--chdir={work}", *options, stdin=script)
    )
    wait_until(
        "all bare jobs have ended",
        lambda: sum(1 for _ in markers.iterdir()) >= count,
        seconds=900,
        every=0.05,
    )
    rate = count / (time.monotonic() - begun)
    wait_until("Slurm is idle", lambda: not bench.slurm("squeue", "-h").strip(), seconds=120, every=0.2)
    return rate


def no_container(bench: Bench) -> Path:
    """A program in Apptainer's place that does nothing."""
    path = bench.root / "no-container"
    subprocess.run(
        bench.stack.as_user(["sh", "-c", 'cat > "$0" && chmod 755 "$0"', str(path)]),
        input=_NO_CONTAINER,
        text=True,
        check=True,
    )
    return path


def dispatch(bench: Bench, image: str, count: int) -> dict[str, Any]:
    """Tasks without a Girder job, sent before the worker starts, whose container is `true`; against bare sbatch of `true`."""
    before = bare(bench, count, ["true"])
    worker = bench.worker("dispatch", config=f"[singularity]\napptainer = {no_container(bench)}\n")
    bench.send(image, count)
    worker.start()
    cpu = worker.cpu_seconds()
    try:
        ended = worker.root / "ended"
        wait_until(
            "all tasks have ended",
            lambda: ended.exists() and sum(1 for _ in ended.iterdir()) >= count,
            seconds=900,
            every=0.1,
        )
        cpu = worker.cpu_seconds() - cpu
    finally:
        worker.stop()
    records = list(_histories(worker))
    rate = count / _span(records)
    after = bare(bench, count, ["true"])
    outcomes = Counter(_last(record, "verdict").get("code") for record in records)
    return {
        "dispatch_ratio_vs_bare": round(rate / ((before + after) / 2), 3),
        "dispatch_jobs_per_second": round(rate, 1),
        "bare_jobs_per_second": round((before + after) / 2, 1),
        "dispatch_worker_cpu_ms_per_job": round(1000 * cpu / count, 1),
        "dispatch_outcomes": dict(outcomes),
    }


def chain(bench: Bench, cli: str, sif: Path, count: int) -> dict[str, Any]:
    """Girder jobs, made before the worker starts, until Girder has the end of each; one in ten fails by itself."""
    before = bare(bench, count, ["true"])
    contained = bare(bench, count, ["apptainer", "exec", "--containall", str(sif), "true"])
    expected = _girder_jobs(
        bench, cli, [3 if number % _FAILING_ONE_IN == 0 else 0 for number in range(count)]
    )
    worker = bench.worker("chain")
    calls, scheduler = bench.girder_calls(), bench.scheduler_calls()
    worker.start()
    try:
        end = bench.wait_for_all(list(expected), seconds=1800)
        wait_until("all records are closed", lambda: not any(worker.root.glob("record/[!.]*")), seconds=120)
    finally:
        worker.stop()
    calls = bench.girder_calls() - calls
    asked = {name: now - scheduler.get(name, 0) for name, now in bench.scheduler_calls().items()}
    records = list(_histories(worker))
    rate = count / (end - min(record[0]["at"] for record in records))
    statuses, logs = bench.statuses(list(expected)), bench.logs(list(expected))
    after = bare(bench, count, ["true"])
    return {
        "chain_ratio_vs_bare": round(rate / ((before + after) / 2), 3),
        "chain_ratio_vs_bare_container": round(rate / contained, 3),
        "chain_jobs_per_second": round(rate, 1),
        "bare_container_jobs_per_second": round(contained, 1),
        "girder_calls_per_job": round(calls / count, 2),
        "scheduler_calls_per_1000_jobs": {
            name: round(1000 * number / count) for name, number in sorted(asked.items()) if number
        },
        "lost": sum(1 for status in statuses.values() if status not in FINAL) + count - len(statuses),
        "doubled": sum(1 for log in logs.values() if len(last_act(log)) > 1),
        "false_verdicts": sum(
            1 for job, status in statuses.items() if status in FINAL and status != expected[job]
        ),
        "without_output": sum(1 for log in logs.values() if not last_act(log)),
        "start_seconds_median": _start_median(records),
    }


def chain_without_container(bench: Bench, cli: str, count: int) -> dict[str, Any]:
    """Girder jobs as in `chain`, whose container is `true`: what worker and Girder cost beside bare sbatch of the same."""
    before = bare(bench, count, ["true"])
    expected = _girder_jobs(bench, cli, [0] * count)
    worker = bench.worker("chain-alone", config=f"[singularity]\napptainer = {no_container(bench)}\n")
    worker.start()
    try:
        end = bench.wait_for_all(list(expected), seconds=1800)
    finally:
        worker.stop()
    rate = count / (end - min(record[0]["at"] for record in _histories(worker)))
    after = bare(bench, count, ["true"])
    statuses = bench.statuses(list(expected))
    return {
        "chain_without_container_ratio_vs_bare": round(rate / ((before + after) / 2), 3),
        "chain_without_container_succeeded": sum(status == SUCCESS for status in statuses.values()),
    }


def _girder_jobs(bench: Bench, cli: str, codes: Sequence[int]) -> dict[str, int]:
    """New Girder jobs whose containers end with these codes → how each is to end."""
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda code: bench.run_cli(cli, code=code), codes)
        return {job: ERROR if code else SUCCESS for job, code in zip(made, codes, strict=True)}


def _start_median(records: Sequence[list[dict[str, Any]]]) -> float:
    waits = sorted(_last(record, "submitted")["at"] - record[0]["at"] for record in records)
    return round(waits[len(waits) // 2], 3)


def _histories(worker: Worker) -> Iterator[list[dict[str, Any]]]:
    """The entries of each ended job."""
    for path in worker.root.glob("ended/*/state.jsonl"):
        yield [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _last(record: Sequence[dict[str, Any]], event: str) -> dict[str, Any]:
    return next((entry for entry in reversed(record) if entry["event"] == event), {})


def _span(records: Sequence[list[dict[str, Any]]]) -> float:
    """Seconds from the first task that was taken to the last that was closed."""
    return max(_last(record, "closed")["at"] for record in records) - min(
        record[0]["at"] for record in records
    )
