"""`girder-slurm service`: a unit for the installation that prints it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from girder_worker_slurm.cli import cli
from girder_worker_slurm.cli.service_command import render_checkout_unit, render_installed_unit


def settings_of(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def printed(monkeypatch, config: str | None) -> dict[str, str]:
    monkeypatch.setenv("HOME", "/home/girder")
    if config is None:
        monkeypatch.delenv("GIRDER_WORKER_SLURM_CONFIG", raising=False)
    else:
        monkeypatch.setenv("GIRDER_WORKER_SLURM_CONFIG", config)
    result = CliRunner().invoke(cli, ["service"])
    assert result.exit_code == 0
    return settings_of(result.stdout)


def test_it_starts_the_program_of_this_environment(monkeypatch):
    assert printed(monkeypatch, None)["ExecStart"] == f"{Path(sys.prefix)}/bin/girder-slurm worker"


def test_without_a_name_the_settings_are_in_the_account_s_configuration(monkeypatch):
    unit = printed(monkeypatch, None)
    assert unit["Environment"] == "GIRDER_WORKER_SLURM_CONFIG=/home/girder/.config/girder-worker-slurm.cfg"


def test_the_settings_files_of_now_are_named_absolutely(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    unit = printed(monkeypatch, "site.cfg:/etc/girder/secret.cfg")
    assert unit["Environment"] == f"GIRDER_WORKER_SLURM_CONFIG={tmp_path}/site.cfg:/etc/girder/secret.cfg"


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/opt/a b/girder-slurm", '"/opt/a b/girder-slurm"'),
        ("/opt/100%/girder-slurm", "/opt/100%%/girder-slurm"),
        ('/opt/"x"\\y/girder-slurm', '"/opt/\\"x\\"\\\\y/girder-slurm"'),
    ],
)
def test_odd_names_are_one_word_for_systemd(path, written):
    assert settings_of(render_installed_unit(Path(path), "/a"))["ExecStart"] == f"{written} worker"


def test_it_is_the_unit_of_a_checkout_but_for_program_and_settings():
    installed = settings_of(render_installed_unit(Path("/venv/bin/girder-slurm"), "/a"))
    checkout = settings_of(render_checkout_unit())
    assert set(installed) - set(checkout) == {"Environment"}
    assert {name for name in checkout if checkout[name] != installed[name]} == {"ExecStart"}
