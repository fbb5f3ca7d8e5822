"""Bytes of a conversion, seen in files that lie as Apptainer 1.4.5 lays them."""

from __future__ import annotations

import pytest

from girder_worker_singularity.sif.growth import Growth, Places, fetched, written_bytes
from girder_worker_singularity.sif.progress import Transfer
from girder_worker_singularity.source.origin import ExpectedBytes
from girder_worker_singularity.testing import FakeClock

A, B = "a" * 64, "b" * 64
PARTS = ExpectedBytes({f"sha256:{A}": 100, f"sha256:{B}": 50})
FETCHING = "INFO:    Fetching OCI image..."
WRITING = "INFO:    Creating SIF file..."


class Bench:
    def __init__(self, tmp_path):
        self.build, self.cache = tmp_path / "build", tmp_path / "cache"
        self.layout = "bundle-temp-1/layout-2/blobs/sha256"
        self.destination = tmp_path / "x.sif"
        self.destination.touch()
        self.clock = FakeClock()
        self.expected = PARTS
        self.lines = []

    def places(self, **changes):
        return Places(**{"destination": self.destination, "build_dir": self.build, **changes})

    def put(self, path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))

    def blob(self, name, size):
        self.put(self.build / self.layout / name, size)

    def growth(self, **changes):
        return Growth(self.places(**changes), self.lines.append, self.clock, expected=lambda: self.expected)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_whole_and_half_parts_are_counted(bench):
    bench.blob(A, 100)
    bench.blob(f"{B}123456789", 20)
    assert fetched(bench.places(), PARTS) == Transfer("fetching", 120, 150)


def test_a_part_that_is_there_twice_counts_once(bench):
    bench.blob(f"{A}111", 30)
    bench.blob(f"{A}222", 60)
    assert fetched(bench.places(), PARTS) == Transfer("fetching", 60, 150)


def test_never_more_than_the_whole_is_there(bench):
    bench.blob(A, 1000)
    bench.blob("c" * 64, 500)  # the manifest, say
    assert fetched(bench.places(), PARTS) == Transfer("fetching", 100, 150)
    assert fetched(bench.places(), ExpectedBytes(total=700)) == Transfer("fetching", 700, 700)


def test_without_sizes_there_is_no_total(bench):
    bench.blob(f"{A}1", 30)
    bench.blob(B, 20)
    assert fetched(bench.places(), ExpectedBytes()) == Transfer("fetching", 50)


def test_what_an_engine_saves_is_seen_before_its_layers(bench):
    bench.put(bench.build / "bundle-temp-1/123.tar", 90)
    assert fetched(bench.places(), ExpectedBytes(total=95)) == Transfer("fetching", 90, 95)
    bench.put(bench.build / "bundle-temp-1/123.tar", 96)
    bench.blob(A, 40)
    assert fetched(bench.places(), ExpectedBytes(total=95)) == Transfer("fetching", 95, 95)


def test_of_the_cache_only_the_image_s_own_parts_count(bench):
    for name, size in ((A, 100), (f"{B}77", 10), ("c" * 64, 999)):
        bench.put(bench.cache / "cache/blob/blobs/sha256" / name, size)
    places = bench.places(cache_dir=bench.cache)
    assert fetched(places, PARTS) == Transfer("fetching", 110, 150)
    assert fetched(places, ExpectedBytes()).done == 0


def test_a_sif_that_is_fetched_whole_is_seen_in_both_of_its_places(bench):
    bench.put(bench.build / "oras-tmp-9/blobs/sha256" / f"{A}1", 70)
    sif = ExpectedBytes({f"sha256:{A}": 100})
    assert fetched(bench.places(), sif) == Transfer("fetching", 70, 100)
    bench.put(bench.destination, 100)
    (bench.build / "oras-tmp-9/blobs/sha256" / f"{A}1").unlink()
    assert fetched(bench.places(), sif) == Transfer("fetching", 100, 100)


def test_of_the_sif_its_file_system_is_seen_first(bench):
    bench.put(bench.build / "bundle-temp-1/squashfs-1", 80)
    assert written_bytes(bench.places()) == 80
    bench.put(bench.destination, 90)
    assert written_bytes(bench.places()) == 90


def test_of_another_host_only_the_growing_sif_is_told(bench):
    bench.blob(A, 100)
    growth = bench.growth(build_dir=None)
    growth.hear(FETCHING)
    growth.look()
    assert bench.lines == []
    growth.hear(WRITING)
    bench.put(bench.destination, 7)
    bench.clock.advance(10)
    growth.look()
    assert bench.lines == ["Bytes: writing 7 of ?"]


def test_bytes_are_told_now_and_then_and_only_more_of_them(bench):
    growth = bench.growth()
    bench.blob(A, 60)
    growth.look()
    assert bench.lines == []  # nothing has begun
    growth.hear(FETCHING)
    growth.look()
    bench.blob(A, 70)
    growth.look()
    assert bench.lines == ["Bytes: fetching 60 of 150"]
    bench.clock.advance(2)
    growth.look()
    bench.blob(A, 10)
    bench.clock.advance(2)
    growth.look()
    assert bench.lines == ["Bytes: fetching 60 of 150", "Bytes: fetching 70 of 150"]
    growth.hear("INFO:    Extracting OCI image...")
    bench.clock.advance(2)
    growth.look()
    growth.hear(WRITING)
    bench.put(bench.build / "bundle-temp-1/squashfs-1", 5)
    bench.clock.advance(2)
    growth.look()
    assert bench.lines[2:] == ["Bytes: writing 5 of ?"]


def test_a_total_may_come_later(bench):
    bench.expected = None
    growth = bench.growth()
    growth.hear(FETCHING)
    bench.blob(A, 60)
    growth.look()
    bench.expected = PARTS
    bench.blob(A, 70)
    bench.clock.advance(2)
    growth.look()
    assert bench.lines == ["Bytes: fetching 60 of ?", "Bytes: fetching 70 of 150"]


def test_what_goes_wrong_does_no_harm(bench, caplog):
    def fail():
        raise RuntimeError

    growth = Growth(bench.places(), bench.lines.append, bench.clock, expected=fail)
    growth.hear(FETCHING)
    growth.look()
    assert bench.lines == []
    assert "cannot be seen" in caplog.text
