"""The site's own lines in the job script, read by a real bash that runs none of them."""

from __future__ import annotations

import re

import pytest

from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_slurm.doctor.job_script import check_job_script
from girder_worker_slurm.settings import load_settings


def look(tmp_path, text):
    path = tmp_path / "worker.cfg"
    path.write_text(text)
    (finding,) = check_job_script(load_settings((path,), {}), LocalCommandRunner())
    return finding


def test_a_site_s_lines_are_read_and_not_run(tmp_path):
    made = tmp_path / "made"
    text = f"[slurm]\nprerun_commands = touch {made}\npostrun_commands = echo 'x'\nmodules = a\n"
    assert look(tmp_path, text).level.value == "ok"
    assert not made.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[slurm]\nprerun_commands = echo "a\n', r"before the container of \[slurm\]: .*unexpected EOF"),
        ("[slurm]\npostrun_commands =\n    if true; then\n    x\n", r"after the container of \[slurm\]"),
        ("[slurm.profiles]\nteam/* =\n    prerun = echo 'a\n", r"before the container of \[slurm.profiles\] team/\*"),
        ("[slurm]\nprerun_commands = }\n", "before the container"),
    ],
)  # fmt: skip
def test_what_bash_cannot_read_is_a_reason_not_to_start(tmp_path, text, words):
    finding = look(tmp_path, text)
    assert finding.level.value == "fail"
    assert re.search(words, finding.found), finding.found


def test_a_template_that_makes_no_sense_is_named(tmp_path):
    template = tmp_path / "own.slurm"
    template.write_text('{% extends "singularity.slurm" %}{% block prerun %}{{ nothing }}{% endblock %}')
    finding = look(tmp_path, f"[slurm]\nscript_template = {template}\n")
    assert (finding.level.value, "nothing" in finding.found) == ("fail", True)
    template.unlink()
    assert look(tmp_path, f"[slurm]\nscript_template = {template}\n").level.value == "fail"
