"""What the tests of the doctor's looks at this machine share."""

from __future__ import annotations

from pathlib import Path

from girder_worker_singularity.command_runner import CommandResult
from girder_worker_slurm.settings import Settings, load_settings


def levels(findings) -> list[str]:
    return [finding.level.value for finding in findings]


def settings_with(root: Path, **environment: str) -> Settings:
    return load_settings((), {"GIRDER_WORKER_SLURM_JOBS_ROOT": str(root), **environment})


def answer(stdout: str = "", stderr: str = "", returncode: int = 0) -> CommandResult:
    return CommandResult(("x",), returncode, stdout, stderr)
