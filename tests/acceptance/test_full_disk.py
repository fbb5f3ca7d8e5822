"""A store, or the directory where images are unpacked, on a disk that fills up in the middle of the work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.images import build_oci_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stack import Stack

pytestmark = [pytest.mark.girder, pytest.mark.timeout(180)]

REPOSITORY = Path(__file__).parents[2]
MIB = 1024**2
ENSURE = """
import sys
from pathlib import Path
from girder_worker_singularity import *
from girder_worker_singularity.sif.use import last_used, take
from girder_worker_singularity.source.image_sources import SourceOptions
root, build, archives = map(Path, sys.argv[1:])
options = StoreOptions(
    ConvertOptions(tmp_dir=build), minimum_free_bytes=0, sources=SourceOptions(places=("archive",), archive_dir=archives)
)
store, clock = SifStore(root, LocalCommandRunner(), SystemClock(), options), SystemClock()
try:
    print("made", store.ensure("team/tool:1", policy="always").converted)
except ContainerError as error:
    print(type(error).__name__, error)
sif = store.find("team/tool:1")
if sif is not None:
    print("taken", take(sif.path, clock), clock.now() - last_used(sif.path) < 60)
    print("runs", run_on_this_host(sif, [], runner=LocalCommandRunner(), scratch=archives).stdout)
"""


class SmallDisk:
    """A site of the stack's user, with one directory on a disk that can be made full."""

    def __init__(self, stack: Stack, base: Path, name: str) -> None:
        self.stack, self.base = stack, base
        self.disk = base / name
        for directory in ("sifs", "build", "archives"):
            (base / directory).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=777", "tmpfs", self.disk], check=True)
        for path in (base, base / "sifs", base / "build", base / "archives"):
            shutil.chown(path, stack.user, stack.user)

    def image(self, says: str, *, mib: int = 0) -> None:
        layout = self.base / "archives/team_tool_1"
        shutil.rmtree(layout, ignore_errors=True)
        files = {"/run.sh": f"#!/bin/sh\necho {says}\n", "/noise": os.urandom(mib * MIB)}
        build_oci_layout(layout, files, entrypoint=["/run.sh"])

    def ensure(self) -> str:
        argv = [
            sys.executable,
            "-c",
            ENSURE,
            *(str(self.base / name) for name in ("sifs", "build", "archives")),
        ]
        done = subprocess.run(
            self.stack.as_user(argv),
            env={**self.stack.user_environment(), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def leave(self, kib: int) -> Path:
        """Fills the disk until so much is left."""
        filler = self.disk / "filler"
        free = shutil.disk_usage(self.disk).free
        subprocess.run(["fallocate", "-l", str(max(1, free - kib * 1024)), filler], check=True)
        return filler

    def leftovers(self) -> list[str]:
        found = [path for path in (self.base / "sifs").iterdir() if path.name.startswith(".tmp")]
        return [str(path) for path in (*found, *(self.base / "sifs/.leases").iterdir(), *(self.base / "build").iterdir())
                if path.name != "filler"]  # fmt: skip


@pytest.fixture(params=["sifs", "build"])
def site(request: pytest.FixtureRequest, stack: Stack) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    base = stack.shared / f"disk-{uuid.uuid4().hex[:8]}"
    base.mkdir()
    try:
        yield SmallDisk(stack, base, request.param)
    finally:
        subprocess.run(["umount", "--lazy", base / request.param], capture_output=True)
        shutil.rmtree(base, ignore_errors=True)


@pytest.mark.parametrize("kib", [4 * 1024, 0], ids=["nearly", "full"])
@pytest.mark.fault("disk full", phases=("image converting",))
def test_a_disk_that_fills_up_is_named_and_the_sif_in_use_goes_on(site: SmallDisk, kib: int) -> None:
    site.image("old")
    assert "made True" in site.ensure()
    site.image("new", mib=12)
    filler = site.leave(kib)
    said = site.ensure()
    assert said.startswith("NotEnoughSpace "), said
    assert "taken True True\nruns old\n" in said
    assert site.leftovers() == []
    filler.unlink()
    assert "made True\ntaken True True\nruns new\n" in site.ensure()
    assert site.leftovers() == []
