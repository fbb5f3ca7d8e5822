"""A small message that unpacks to a giant one stays small."""

from __future__ import annotations

import bz2
import lzma
import zlib

import pytest
from kombu import compression

from girder_worker_slurm.celery_worker.bounded_unpacking import bound_unpacking
from girder_worker_slurm.celery_worker.object_decoder import MOST_BYTES
from girder_worker_slurm.errors import MessageUndecodable

PACKERS = {"application/x-gzip": zlib, "application/x-bz2": bz2, "application/x-lzma": lzma}


@pytest.fixture(autouse=True)
def bounded(monkeypatch):
    monkeypatch.setattr(compression, "_decoders", dict(compression._decoders))
    monkeypatch.setattr(compression, "_encoders", dict(compression._encoders))
    bound_unpacking()


@pytest.mark.parametrize("kind", PACKERS)
def test_what_a_stock_client_packs_is_unpacked(kind):
    data, packed = compression.compress(b"[[], {}, {}]" * 1000, kind)
    assert packed == kind
    assert compression.decompress(data, kind) == b"[[], {}, {}]" * 1000


@pytest.mark.parametrize("kind", PACKERS)
def test_more_than_the_largest_message_is_refused(kind):
    bomb = PACKERS[kind].compress(bytes(MOST_BYTES + 1))
    assert len(bomb) < 100_000
    with pytest.raises(MessageUndecodable, match=f"more than {MOST_BYTES} bytes"):
        compression.decompress(bomb, kind)


@pytest.mark.parametrize("kind", PACKERS)
def test_half_a_message_is_refused(kind):
    with pytest.raises(MessageUndecodable, match="cut off"):
        compression.decompress(PACKERS[kind].compress(b"abc" * 1000)[:-6], kind)


def test_other_ways_are_not_read_even_where_they_are_installed():
    for name in ("brotli", "zstd"):
        try:
            kind = compression.get_encoder(name)[1]
        except KeyError:
            continue
        with pytest.raises(MessageUndecodable, match="not read here"):
            compression.decompress(b"x", kind)
