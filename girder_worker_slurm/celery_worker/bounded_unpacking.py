"""Compressed messages, which Celery unpacks before anybody can look: no more than the largest message that is read."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.celery_worker.object_decoder import MOST_BYTES
from girder_worker_slurm.errors import MessageUndecodable

if TYPE_CHECKING:
    from collections.abc import Callable

_UNPACKERS: dict[str, Callable[[], Any]] = {
    "gzip": zlib.decompressobj,
    "bzip2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}
#: Of which kombu knows more where their packages are installed.
_OTHERS = ("brotli", "zstd")


def bound_unpacking() -> None:
    """From here on this process unpacks no message to more than `MOST_BYTES`; kombu keeps such a body as it came."""
    from kombu import compression  # noqa: PLC0415 - only a worker has it

    for name in (*_UNPACKERS, *_OTHERS):
        try:
            encoder, kind = compression.get_encoder(name)
        except KeyError:
            continue
        compression.register(encoder, _bounded(_UNPACKERS.get(name), name), kind)


def _bounded(new: Callable[[], Any] | None, name: str) -> Callable[[bytes], bytes]:
    def unpack(data: bytes) -> bytes:
        if new is None:
            msg = f"Messages compressed with {name} are not read here."
            raise MessageUndecodable(msg)
        unpacker = new()
        found = bytes(unpacker.decompress(data, MOST_BYTES + 1))
        if len(found) > MOST_BYTES or not unpacker.eof:
            msg = f"A message is cut off, or has more than {MOST_BYTES} bytes when it is unpacked."
            raise MessageUndecodable(msg)
        return found

    return unpack
