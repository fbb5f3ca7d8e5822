"""One suite for every way to run directories: by the worker itself, and through `girder-slurm-files`.

As another Unix user it runs in tests/acceptance/test_unix_users.py, for which root is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import Conversation
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.cluster.user_run_files import UserRunFiles
from tests.support.run_files_suite import *  # noqa: F403 - the suite
from tests.support.run_files_suite import Lab

PROGRAM = [sys.executable, "-m", "girder_worker_slurm.cluster.files_program"]


def own_job(line: str) -> str:
    return subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True).stdout


def own_files(tmp_path: Path):
    runs = RunDirectories(tmp_path / "jobs")
    runs.prepare()
    yield Lab(runs, own_job, tmp_path)


def through_the_program(tmp_path: Path):
    """As the same user: all but the change of users."""
    root = tmp_path / "runs"
    environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = UserRunFiles(
        "me",
        root,
        uid=os.geteuid(),
        transfers=tmp_path / "transfers",
        start=lambda: Conversation([*PROGRAM, str(root)], env=environment),
        clock=SystemClock(),
    )
    runs.prepare()
    yield Lab(runs, own_job, tmp_path)
    runs.close()


@pytest.fixture(params=[own_files, through_the_program], ids=["direct", "program"])
def lab(request, tmp_path):
    yield from request.param(tmp_path)
