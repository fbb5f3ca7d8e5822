"""The same many short jobs through libraries from PyPI that submit to Slurm."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from benchmarks.throughput import bare

if TYPE_CHECKING:
    from benchmarks.site import Bench

_SUBMITIT = """
import sys, time, subprocess, submitit
count, folder = int(sys.argv[1]), sys.argv[2]
executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
executor.update_parameters(timeout_min=5, slurm_mem="150")
begun = time.monotonic()
jobs = [executor.submit(subprocess.call, ["true"]) for _ in range(count)]
assert [job.result() for job in jobs] == [0] * count
print(count / (time.monotonic() - begun))
"""
_PARSL = """
import sys, time, parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import SlurmProvider
count, folder = int(sys.argv[1]), sys.argv[2]
@parsl.bash_app
def nothing(stdout="/dev/null"):
    return "true"
provider = SlurmProvider(init_blocks=1, max_blocks=1, mem_per_node=1, cores_per_node=4, walltime="00:10:00", exclusive=False)
executor = HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=4, provider=provider, encrypted=False)
begun = time.monotonic()
with parsl.load(Config(executors=[executor], run_dir=folder)):
    assert [job.result() for job in [nothing() for _ in range(count)]] == [0] * count
    print(count / (time.monotonic() - begun))
"""


def peers(bench: Bench, count: int) -> dict[str, Any]:
    """Jobs per second of submitit (a Slurm job each) and Parsl (one Slurm job for all) as parts of bare sbatch."""
    venv = bench.root / "peers"
    python = str(venv / "bin" / "python")
    subprocess.run(bench.stack.as_user(["/usr/bin/python3", "-m", "venv", str(venv)]), check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "submitit", "parsl"]
    subprocess.run(bench.stack.as_user(install), env=bench.stack.user_environment(), check=True)
    reference = bare(bench, count, ["true"])
    result = {}
    for name, code in (("submitit", _SUBMITIT), ("parsl_pilot", _PARSL)):
        folder = bench.root / name
        subprocess.run(bench.stack.as_user(["mkdir", str(folder)]), check=True)
        env = bench.stack.user_environment()
        env["PATH"] = f"{venv}/bin:{env['PATH']}"
        done = subprocess.run(
            bench.stack.as_user([python, "-c", code, str(count), str(folder)]),
            env=env,
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode != 0:
            msg = f"{name} failed: {done.stderr[-2000:]}"
            raise RuntimeError(msg)
        result[f"{name}_ratio_vs_bare"] = round(float(done.stdout.split()[-1]) / reference, 3)
    return result
