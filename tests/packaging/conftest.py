"""The distributions that the tests look at: those of GIRDER_SLURM_DIST, or else newly built ones."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from email.message import Message

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Distributions:
    """One sdist and the wheel that was made from it: file name → content, without the sdist's top directory."""

    sdist: dict[str, bytes]
    wheel: dict[str, bytes]
    #: Names of the two files.
    names: tuple[str, str]

    @property
    def information(self) -> str:
        """The wheel's directory of metadata."""
        (found,) = {name.split("/")[0] for name in self.wheel if ".dist-info/" in name}
        return found

    @property
    def metadata(self) -> Message:
        """The wheel's METADATA."""
        return message_from_bytes(self.wheel[f"{self.information}/METADATA"])


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """What users get."""
    directory = Path(os.environ.get("GIRDER_SLURM_DIST") or tmp_path_factory.mktemp("dist"))
    if "GIRDER_SLURM_DIST" not in os.environ:
        subprocess.run(
            ["uv", "build", "--quiet", "--out-dir", directory, REPOSITORY], check=True, timeout=300
        )
    (sdist,) = directory.glob("*.tar.gz")
    (wheel,) = directory.glob("*.whl")
    with tarfile.open(sdist) as archive:
        files = [member for member in archive if member.isfile()]
        packed = {
            member.name.partition("/")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in files
        }
    with zipfile.ZipFile(wheel) as archive:
        unpacked = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    return Distributions(packed, unpacked, (sdist.name, wheel.name))
