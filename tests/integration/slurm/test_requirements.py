"""A test that needs a service fails where the service is required, and is skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
CONFTEST = REPOSITORY / "tests" / "conftest.py"
TESTS = """
import pytest

@pytest.mark.girder
def test_with_girder():
    pass

@pytest.mark.apptainer
def test_that_skips_itself():
    pytest.skip("for a reason of its own")
"""


def run(tmp_path, **environment):
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slurm: s\n  apptainer: a\n  girder: g\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apptainer").write_text("#!/bin/sh\n")
    (tools / "apptainer").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIRDER", "DEVSTACK"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**kept, "PATH": f"{tools}:{kept['PATH']}", "PYTHONPATH": str(REPOSITORY), **environment},
    )


def test_a_missing_service_skips_its_tests(tmp_path):
    assert "2 skipped" in run(tmp_path).stdout


def test_a_missing_service_that_is_required_fails_its_tests(tmp_path):
    result = run(tmp_path, GIRDER_SLURM_REQUIRE="girder,apptainer")
    assert "1 failed, 1 error" in result.stdout
    assert "GIRDER_API_URL is not set" in result.stdout
    assert "skipped although apptainer is required" in result.stdout


def test_an_unknown_service_name_is_an_error(tmp_path):
    result = run(tmp_path, GIRDER_SLURM_REQUIRE="slrm")
    assert result.returncode == 4
    assert "unknown services: slrm" in result.stderr
