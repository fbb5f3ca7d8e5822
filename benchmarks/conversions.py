"""What an image costs: the first time, with many jobs waiting for it, and each time after that."""

from __future__ import annotations

import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.clock import SystemClock
from girder_worker_slurm.assembly import make_images, make_runner
from girder_worker_slurm.settings import load_settings
from tests.support.girder_site import SUCCESS

if TYPE_CHECKING:
    from benchmarks.site import Bench
    from tests.support.worker import Worker

_LOOKS = 300
_COUNTING = """#!/bin/sh
for word in "$@"; do [ "$word" = build ] && echo "$$" >> '{tally}' && break; done
exec apptainer "$@"
"""


def conversions(bench: Bench, count: int) -> dict[str, Any]:
    """So many jobs at once whose image nobody has converted: how many conversions that takes."""
    tally, program = bench.root / "conversions", bench.root / "counting-apptainer"
    subprocess.run(
        bench.stack.as_user(
            ["sh", "-c", 'cat > "$0" && chmod 755 "$0" && : > "$1"', str(program), str(tally)]
        ),
        input=_COUNTING.format(tally=tally),
        text=True,
        check=True,
    )
    worker = bench.worker(
        "new-image", sif="new-sif", config=f"[singularity]\napptainer = {program}\n"
    ).start()
    try:
        _image, cli = bench.ingest(worker)
        for sif in worker.sif.glob("*.sif*"):
            sif.unlink()
        tally.write_text("", encoding="ascii")
        begun = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            jobs = list(pool.map(lambda _: bench.run_cli(cli), range(count)))
        bench.wait_for_all(jobs, seconds=600)
        seconds = time.monotonic() - begun
    finally:
        worker.stop()
    succeeded = sum(1 for status in bench.statuses(jobs).values() if status == SUCCESS)
    return {
        f"conversions_for_{count}_jobs": len(tally.read_text(encoding="ascii").split()),
        f"succeeded_of_{count}_on_a_new_image": succeeded,
        f"seconds_for_{count}_jobs_on_a_new_image": round(seconds, 1),
    }


def cached_image(worker: Worker, image: str) -> dict[str, Any]:
    """Milliseconds until a job has an image that is there: found, checked and its configuration read; against the first look."""
    store = make_images(load_settings((worker.config,), {}), make_runner(), SystemClock())
    times = []
    for _ in range(_LOOKS):
        begun = time.perf_counter()
        sif = store.find_for(image, "if-not-present")
        times.append(1000 * (time.perf_counter() - begun))
        assert sif is not None
    return {
        "cached_image_ms": round(statistics.median(times), 2),
        "cached_image_first_ms": round(times[0], 2),
    }
