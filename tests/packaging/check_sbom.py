"""What `nox -s sbom` has made is about this version and lists the versions that are pinned; run by that session."""

from __future__ import annotations

import json
import os
import re
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

PINS = Path(__file__).parents[2] / "worker" / "constraints.txt"
DIST = Path(os.environ["GIRDER_SLURM_DIST"])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def sbom():
    (file,) = DIST.glob("*.cdx.json")
    return json.loads(file.read_text(encoding="utf-8"))


def test_it_is_about_this_version(sbom):
    (wheel,) = DIST.glob("*.whl")
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        version = HeaderParser().parsestr(archive.read(name).decode())["Version"]
    subject = sbom["metadata"]["component"]
    assert (subject["name"], subject["version"]) == ("girder-worker-slurm", version)
    assert sbom["specVersion"] == "1.6"


def test_every_component_has_the_version_that_is_pinned(sbom):
    pins = [Requirement(line) for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    wanted = {
        normal(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    listed = {normal(part["name"]): part["version"] for part in sbom["components"]}
    assert {name: version for name, version in listed.items() if wanted.get(name) != version} == {}
    assert {"celery", "girder", "girder-worker", "girder-slicer-cli-web", "redis"} <= set(listed)


def test_what_it_needs_directly_is_told(sbom):
    subject = sbom["metadata"]["component"]["bom-ref"]
    (direct,) = (entry["dependsOn"] for entry in sbom["dependencies"] if entry["ref"] == subject)
    names = {normal(part["name"]) for part in sbom["components"] if part["bom-ref"] in direct}
    assert {"celery", "girder-worker", "pydantic"} <= names


def test_nothing_in_it_depends_on_when_and_where_it_was_made(sbom):
    assert "timestamp" not in sbom["metadata"]
    assert "serialNumber" not in sbom
    assert "file://" not in json.dumps(sbom)
