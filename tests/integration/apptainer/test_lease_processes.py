"""Leases among real processes, some of which are killed while they hold one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
FIGHT = """
import os, random, signal, sys, time
from pathlib import Path
from girder_worker_singularity import Holder, Lease, SystemClock
directory, until = Path(sys.argv[1]), float(sys.argv[2])
inside = directory / "inside"
while time.time() < until:
    lease = Lease.acquire(directory / "lease", Holder.this_process(), SystemClock(), wait_seconds=60)
    before = inside.read_text() if inside.exists() else ""
    try:
        state = Path("/proc", before, "stat").read_text().rpartition(")")[2].split()[0] if before else "Z"
    except (FileNotFoundError, ProcessLookupError):
        state = "Z"
    if state != "Z":
        print("overlap", before, os.getpid(), flush=True)
    inside.write_text(str(os.getpid()))
    lease.check()
    time.sleep(random.random() * 0.01)
    if random.random() < 0.2:
        os.kill(os.getpid(), signal.SIGKILL)
    lease.check()
    inside.write_text("")
    lease.release()
    print("held", flush=True)
"""


def test_processes_that_die_with_the_lease_never_let_two_in(tmp_path):
    until = time.time() + 8
    argv = [sys.executable, "-c", FIGHT, str(tmp_path), str(until)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)

    running, killed, output = [start() for _ in range(4)], 0, ""
    while running:
        for process in list(running):
            if process.poll() is None:
                continue
            running.remove(process)
            output += process.communicate()[0]
            killed += process.returncode == -9
            assert process.returncode in (0, -9)
            if time.time() < until:
                running.append(start())
        time.sleep(0.02)
    assert "overlap" not in output
    assert output.count("held") > 3
    assert killed > 3
