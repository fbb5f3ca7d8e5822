"""The settings as the doctor reads them: what is wrong with them, and what may surprise."""

from __future__ import annotations

import pytest

from girder_worker_slurm.doctor import configuration
from girder_worker_slurm.doctor.finding import Finding, Level
from tests.unit.slurm.doctor.here import levels


def test_a_wrong_setting_is_a_finding_with_file_and_line(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[jobs]\nroot = /jobs\nrooot = /jobs\n")

    finding = configuration.read_settings((file,), {})

    assert isinstance(finding, Finding)
    assert finding.level is Level.FAIL
    assert f"{file}:3" in finding.found


def test_a_wrong_line_is_shown_without_the_password_in_it(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[celery]\nbroker: amqp://girder:topsecret@host/\n")

    finding = configuration.read_settings((file,), {})

    assert isinstance(finding, Finding)
    assert "topsecret" not in str(finding)


def test_no_jobs_root_at_all_is_a_finding():
    assert isinstance(configuration.read_settings((), {}), Finding)


def test_no_file_is_a_warning_and_a_file_is_not(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[jobs]\nroot = /jobs\n")

    assert levels(configuration.check_settings((), {})) == ["warn"]
    assert levels(configuration.check_settings((file,), {})) == ["ok"]


def test_a_generic_variable_is_a_warning_that_names_it():
    found = list(configuration.check_settings((), {"TMPDIR": "/scratch"}))

    assert any("TMPDIR" in finding.found and "`root` in [jobs]" in finding.remedy for finding in found)


@pytest.mark.parametrize(
    ("broker", "mode", "expected"),
    [
        ("amqp://me:word@host/", 0o644, ["ok", "warn"]),
        ("amqp://me:word@host/", 0o600, ["ok"]),
        ("amqp://guest:guest@host/", 0o644, ["ok"]),
        ("amqp://host/", 0o644, ["ok"]),
    ],
)
def test_a_readable_file_with_a_password_is_a_warning(tmp_path, broker, mode, expected):
    file = tmp_path / "worker.local.cfg"
    file.write_text(f"[celery]\nbroker = {broker}\n")
    file.chmod(mode)

    assert levels(configuration.check_settings((file,), {})) == expected
