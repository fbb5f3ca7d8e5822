"""What the worker and `girder-slurm-files` say to each other: heads in JSON and bytes, the length of each before it. Pure.

The other side may be a program of somebody who means no good: what is longer than it may be, or makes no sense, is
refused before it is read.
"""

from __future__ import annotations

import errno
import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Changes when one side would not understand the other any more.
PROTOCOL = 1
#: The largest piece of a file in one frame.
PIECE_BYTES = 1024 * 1024
_MARK = b"gsf1"
_LENGTHS = struct.Struct(">4sII")
#: The events of a spool that nobody has read for long.
_MOST_HEAD_BYTES = 16 * 1024 * 1024
_MOST_DATA_BYTES = 4 * 1024 * 1024


class FrameInvalid(OSError):
    """What came is no frame, or a longer one than there may be."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EPROTO, what)


def frame(head: dict[str, Any], data: bytes = b"") -> bytes:
    """A frame as it is sent; raises FrameInvalid for one that the other side would refuse."""
    text = json.dumps(head).encode("ascii")
    if len(text) > _MOST_HEAD_BYTES or len(data) > _MOST_DATA_BYTES:
        raise FrameInvalid(f"A message of {len(text)} and {len(data)} bytes is too long.")
    return _LENGTHS.pack(_MARK, len(text), len(data)) + text + data


def read_frame(read: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """The next frame; `read` gives exactly as many bytes as it is asked for, or raises EOFError."""
    mark, head_bytes, data_bytes = _LENGTHS.unpack(read(_LENGTHS.size))
    if mark != _MARK:
        raise FrameInvalid("What came is not from girder-slurm-files.")
    if head_bytes > _MOST_HEAD_BYTES or data_bytes > _MOST_DATA_BYTES:
        raise FrameInvalid(f"A message of {head_bytes} and {data_bytes} bytes came, which is too long.")
    try:
        head = json.loads(read(head_bytes))
    except (ValueError, RecursionError) as error:
        raise FrameInvalid("A message came that is not JSON.") from error
    if not isinstance(head, dict):
        raise FrameInvalid("A message came that has no names.")
    return head, read(data_bytes) if data_bytes else b""
