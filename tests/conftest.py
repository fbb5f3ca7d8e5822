"""Tests that need a service are skipped where it is not; where it is required, they fail instead.

GIRDER_SLURM_REQUIRE names the services that must be there, separated by commas: ``slurm,apptainer,girder,docker``.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from hypothesis import HealthCheck, settings

from tests.support import faults

# The same examples each time, however long a busy machine takes for one. `--hypothesis-profile=search` looks for others.
settings.register_profile("search", deadline=None)
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

SERVICES = ("slurm", "apptainer", "girder", "docker")


def required_services() -> frozenset[str]:
    names = {name.strip() for name in os.environ.get("GIRDER_SLURM_REQUIRE", "").split(",")} - {""}
    unknown = names - set(SERVICES)
    if unknown:
        raise pytest.UsageError(f"GIRDER_SLURM_REQUIRE names unknown services: {', '.join(sorted(unknown))}")
    return frozenset(names)


def pytest_configure(config) -> None:
    required_services()
    if directory := os.environ.get(faults.RESULTS):
        config.pluginmanager.register(faults.FaultRecorder(Path(directory)))


@functools.cache
def what_is_missing(service: str) -> str:
    """Why a service cannot be used here; empty when it can."""
    if service == "slurm":
        if os.geteuid() == 0:
            return "Slurm tests run as the unprivileged user DEVSTACK_USER"
        if shutil.which("squeue") is None:
            return "there is no squeue on the PATH"
        answer = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, timeout=60)
        return "" if answer.returncode == 0 else f"squeue: {answer.stderr.strip()}"
    if service == "apptainer":
        path = f"{os.environ.get('DEVSTACK_PATH', '')}:{os.environ.get('PATH', '')}"
        return "" if shutil.which("apptainer", path=path) else "there is no apptainer"
    if service == "docker":
        if os.geteuid() != 0:
            return "only root can start a Docker engine"
        absent = [name for name in ("docker", "dockerd", "mmdebstrap") if shutil.which(name) is None]
        return f"there is no {' and no '.join(absent)}" if absent else ""
    address = os.environ.get("GIRDER_API_URL")
    if not address:
        return "GIRDER_API_URL is not set; load the stack's env file"
    try:
        with urlopen(f"{address}/system/version", timeout=30):
            return ""
    except (URLError, OSError) as error:
        return f"no Girder answers at {address}: {error}"


def pytest_runtest_setup(item) -> None:
    for service in SERVICES:
        if item.get_closest_marker(service) is None:
            continue
        missing = what_is_missing(service)
        if missing and service in required_services():
            pytest.fail(f"{service} is required: {missing}", pytrace=False)
        if missing:
            pytest.skip(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Also a skip that the test itself decides on is a failure where its service is required."""
    del call
    report = yield
    wanted = [service for service in required_services() if item.get_closest_marker(service)]
    if report.skipped and wanted and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although {', '.join(wanted)} is required: {report.longrepr}"
    return report
