"""Sizes and times as people write and read them. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def size_text(size_bytes: float) -> str:
    """`1.5 GiB`."""
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    raise AssertionError  # unreachable: the last unit returns


def size_bytes(text: str) -> int:
    """The bytes of `500M`, `1.5 GiB` or `1000000`, the units being powers of 1024; ValueError if it is none of these."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def ago_text(moment: float | None, now: float) -> str:
    """How long ago, short: `12 s`, `5 min`, `3 h`, `2 d`; `never` for None. In seconds since the epoch."""
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // 86400)} d"


def iso_text(moment: float | None) -> str | None:
    """The moment as ISO 8601 in UTC, for machines."""
    return (
        None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")
    )
