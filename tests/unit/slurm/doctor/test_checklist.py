"""What a worker looks at before it starts."""

from __future__ import annotations

import os

from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_slurm.doctor import apptainer, slurm
from girder_worker_slurm.doctor.checklist import start_checks
from tests.unit.slurm.doctor.here import settings_with


def test_start_is_allowed_where_all_is_here_and_makes_the_directories(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "apptainer"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))

    assert start_checks(settings_with(tmp_path / "jobs"), os.environ, LocalCommandRunner()) == []
    assert (tmp_path / "jobs" / "sif").is_dir()
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700


def test_start_is_refused_for_each_thing_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").write_text("")

    found = start_checks(
        settings_with(tmp_path / "jobs", SIF_IMAGE_PATH=str(tmp_path / "file" / "sif")),
        os.environ,
        LocalCommandRunner(),
    )

    assert [finding.check for finding in found] == [
        slurm.COMMANDS,
        apptainer.PROGRAM,
        apptainer.SIF_DIRECTORY,
    ]
    assert all(finding.remedy for finding in found)
