"""What holds for all commands."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from girder_worker_slurm.cli import cli


@pytest.mark.parametrize("name", [name for name in cli.commands if name not in ("worker", "settings")])
def test_the_help_of_each_command_has_examples_and_whole_sentences(name):
    text = CliRunner().invoke(cli, [name, "--help"]).output

    assert f"  girder-slurm {name}" in text.split("Examples:")[1]
    assert (
        cli.commands[name].help.strip().split("\n")[0].endswith((".", ",", ":"))
        or "." in cli.commands[name].help
    )


def test_looking_at_jobs_needs_neither_celery_nor_a_broker_library(jobs):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    script = (
        "import sys; from girder_worker_slurm.cli import cli\n"
        "for argv in (['jobs'], ['show', 'task-1'], ['unhandled']): cli(argv, standalone_mode=False)\n"
        "heavy = {'celery', 'kombu', 'girder_worker', 'girder_client', 'docker'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    environment = {name: value for name, value in jobs.environment.items() if value}

    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 0, result.stderr


def test_the_doctor_is_loaded_without_celery_and_broker_library():
    script = (
        "import sys; import girder_worker_slurm.cli, girder_worker_slurm.doctor.checklist, girder_worker_slurm.assembly\n"
        "heavy = {'celery', 'kombu', 'girder_worker'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stderr
