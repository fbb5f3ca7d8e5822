"""What is in the sdist and in the wheel, and what is not."""

from __future__ import annotations

import re
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("girder_worker_singularity/", "girder_worker_slurm/")


def test_the_wheel_holds_the_two_packages_whole_and_nothing_else(distributions):
    wanted = {name for name in distributions.sdist if name.startswith(PACKAGES)}
    packed = {name for name in distributions.wheel if not name.startswith(distributions.information)}
    assert packed == wanted
    assert {
        "girder_worker_slurm/script/singularity.slurm",
        "girder_worker_slurm/script/command.slurm",
        "girder_worker_slurm/doctor/probe.slurm",
        "girder_worker_slurm/py.typed",
        "girder_worker_singularity/py.typed",
    } <= packed
    assert {Path(name).suffix for name in packed} == {".py", ".slurm", ".typed"}


def test_the_wheel_carries_the_licence(distributions):
    licence = distributions.wheel[f"{distributions.information}/licenses/LICENSE"]
    assert licence == (REPOSITORY / "LICENSE").read_bytes()
    assert distributions.metadata["License-Expression"] == "Apache-2.0"


def test_the_wheel_has_all_programs_and_the_plugins(distributions):
    points = ConfigParser()
    points.read_string(distributions.wheel[f"{distributions.information}/entry_points.txt"].decode())
    assert {section: dict(points[section]) for section in points.sections()} == {
        "console_scripts": {
            "girder-slurm": "girder_worker_slurm.cli:main",
            "girder-singularity": "girder_worker_singularity.cli:main",
            "girder-slurm-files": "girder_worker_slurm.cluster.files_program:main",
        },
        "girder_worker_plugins": {"slurm": "girder_worker_slurm:SlurmPlugin"},
        "girder.plugin": {"worker_slurm": "girder_worker_slurm.server_plugin:WorkerSlurmPlugin"},
    }


def test_nothing_of_the_tests_is_needed_to_run_it(distributions):
    """Every requirement without an extra, and those of `girder`, are ours on purpose."""
    wanted = [Requirement(text) for text in distributions.metadata.get_all("Requires-Dist")]
    extras = {text: {"extra": text} for text in ("", "girder")}
    names = {
        extra: {
            requirement.name
            for requirement in wanted
            if requirement.marker is None
            or requirement.marker.evaluate({"python_full_version": "3.12.0", **given})
        }
        for extra, given in extras.items()
    }
    assert not names["girder"] & {"pytest", "nox", "mypy", "numpy", "pillow", "uv"}
    assert names["girder"] - names[""] == {"girder", "girder-jobs", "girder-slicer-cli-web"}


def test_the_sdist_is_enough_to_build_test_and_install_from(distributions):
    assert {
        "pyproject.toml",
        "LICENSE",
        "PKG-INFO",
        "CHANGELOG.md",
        "worker.dist.cfg",
        "worker/constraints.txt",
        "worker/install.sh",
        "devstack/devstack",
        "tests/run.sh",
        "docs/howto/deploy.md",
    } <= set(distributions.sdist)


def test_nothing_that_was_made_while_working_is_in_the_sdist(distributions):
    strange = re.compile(
        r"(^|/)(\.git|\.nox|\.ci|\.venv|venv|dist|__pycache__|\.[a-z]+_cache)/|\.pyc$|local\.cfg$"
    )
    assert [name for name in distributions.sdist if strange.search(name)] == []


def test_sdist_and_wheel_are_of_one_version_that_the_changes_know(distributions):
    version = distributions.metadata["Version"]
    assert message_from_bytes(distributions.sdist["PKG-INFO"])["Version"] == version
    assert all(f"-{version}" in name for name in distributions.names)
    headings = re.findall(r"^## (.+)$", distributions.sdist["CHANGELOG.md"].decode(), re.MULTILINE)
    if Version(version).is_devrelease or version == "0.0":
        assert headings[0] == "Unreleased"
    else:
        assert re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", headings[0])
