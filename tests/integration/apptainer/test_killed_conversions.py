"""Whoever converts may be killed between any two steps: the SIF in use stays whole, and the next one succeeds."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from girder_worker_singularity import (
    ConvertOptions,
    LocalCommandRunner,
    SifStore,
    StoreOptions,
    SystemClock,
    read_sif,
)
from girder_worker_singularity.errors import ConversionFailed
from girder_worker_singularity.sif.note import read_note
from girder_worker_singularity.sif.prune import DAY_SECONDS, PruneRules, prune
from girder_worker_singularity.source.image_sources import SourceOptions
from tests.support.images import build_oci_layout

IMAGE = "team/tool:1"
#: Audit events of Python that change a directory or begin to change a file.
CHANGES = frozenset(
    {"os.rename", "os.link", "os.remove", "os.chmod", "os.mkdir", "os.rmdir", "os.utime", "os.truncate"}
)


class Later(SystemClock):
    """The time four days from now."""

    def now(self) -> float:
        return super().now() + 4 * DAY_SECONDS


class Shop:
    """A store with a SIF of an image, of which there is a newer version all the time."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        self.path, self.root, self.build = path, path / "sifs", path / "build"
        sources = SourceOptions(places=("archive",), archive_dir=path / "archives")
        options = StoreOptions(ConvertOptions(tmp_dir=self.build), minimum_free_bytes=0, sources=sources)
        self.store = SifStore(self.root, LocalCommandRunner(), SystemClock(), options)
        self.noise = random.Random(1).randbytes(size)  # noqa: S311
        self.version = 0
        self.renew()
        self.sif = self.make().path

    def renew(self) -> None:
        """From now on the image is another."""
        self.version += 1
        layout = self.path / "archives/team_tool_1"
        shutil.rmtree(layout, ignore_errors=True)
        files = {"/version": str(self.version), "/noise": self.noise}
        build_oci_layout(layout, files, entrypoint=[f"/{self.version}"], applets=False)

    def make(self):
        return self.store.ensure(IMAGE, policy="always")

    def killed(self, act) -> bool:
        """Runs `act` and a conversion in a child, and tells whether that was killed before its end."""
        child = os.fork()
        if child == 0:
            try:
                act()
                self.make()
                os._exit(0)
            finally:
                os._exit(3)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        return status != 0

    def check_in_use(self) -> None:
        """What jobs run from now is the old version or the new one, whole and with its owner noted."""
        assert self.store.find(IMAGE).config.entrypoint in ((f"/{self.version - 1}",), (f"/{self.version}",))
        assert read_note(self.sif).canonical == "docker.io/team/tool:1"

    def check_next(self) -> None:
        """The next one makes the newest version, and nothing is left of the one that was killed."""
        assert self.make().config.entrypoint == (f"/{self.version}",)
        assert read_note(self.sif).identity == read_sif(self.sif).identity
        assert not self.make().converted
        names = {path.name for path in self.root.iterdir() if not path.name.startswith(".old-")}
        assert names == {".leases", "team_tool_1.sif", "team_tool_1.sif.json"}
        prune(self.root, PruneRules(), Later())  # of one that was killed while it took the lease
        assert list((self.root / ".leases").iterdir()) == []
        assert list(self.build.iterdir()) == []
        assert processes_in(self.build) == []
        for old in self.root.glob(".old-*"):
            read_sif(old)


def processes_in(build: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"APPTAINER_TMPDIR={build}/".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def dies_before_change(number: int, below: Path):
    """Makes this process kill itself before its so-manieth change of a file below a directory."""
    counter = itertools.count(1)

    def hook(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        changes = (writes or event in CHANGES) and str(args[0]).startswith(str(below))
        if changes and next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def test_a_kill_between_any_two_changes_of_the_store_harms_nothing(tmp_path):
    shop = Shop(tmp_path)
    for number in itertools.count(1):
        shop.renew()
        killed = shop.killed(dies_before_change(number, shop.root))
        shop.check_in_use()
        if not killed:
            break
        shop.check_next()
    assert number > 10


def test_a_kill_at_any_time_harms_nothing(tmp_path):
    shop = Shop(tmp_path, size=3 * 1024**2)
    shop.renew()
    started = time.monotonic()
    shop.make()
    whole = time.monotonic() - started

    def dies_after(seconds):
        return lambda: threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    killed = 0
    for part in range(6):
        shop.renew()
        killed += shop.killed(dies_after(whole * (part + 0.5) / 6))
        shop.check_in_use()
        shop.check_next()
    assert killed > 2


@pytest.mark.parametrize("victim", ["apptainer", "mksquashfs"])
def test_a_converter_whose_program_is_killed_says_so_and_harms_nothing(tmp_path, victim):
    shop = Shop(tmp_path, size=12 * 1024**2)
    shop.renew()
    stop = threading.Event()

    def kill() -> None:
        while not stop.is_set():
            for process in processes_in(shop.build):
                name = Path(f"/proc/{process}/comm")
                if name.exists() and victim in name.read_text():
                    os.kill(process, signal.SIGKILL)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ConversionFailed):
            shop.make()
    finally:
        stop.set()
        killer.join()
    shop.check_in_use()
    shop.check_next()
