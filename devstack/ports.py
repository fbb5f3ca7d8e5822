"""Finds free TCP ports on the loopback address."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DevstackError

if TYPE_CHECKING:
    from collections.abc import Iterable

HOST = "127.0.0.1"
_LOWEST = 15000


def is_free(port: int) -> bool:
    """Whether a service could listen on this port now (a connection in TIME_WAIT does not count)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104  # slurmctld binds to every address
        except OSError:
            return False
    return True


def answers(port: int, *, timeout_seconds: float = 2) -> bool:
    """Whether something accepts connections on this port."""
    try:
        with socket.create_connection((HOST, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def exchange(port: int, question: bytes, *, timeout_seconds: float = 3) -> bytes:
    """The first bytes a service answers to `question`; empty when it does not."""
    try:
        with socket.create_connection((HOST, port), timeout=timeout_seconds) as connection:
            connection.sendall(question)
            return connection.recv(256)
    except OSError:
        return b""


def find_free(names: Iterable[str], taken: Iterable[int]) -> dict[str, int]:
    """One free port for each name, none of them in `taken`.

    The ports lie below the kernel's range for outgoing connections. A port inside that range can be lost to
    any client while its service is stopped, and a client that retries it can even connect to itself.
    """
    lowest_ephemeral = int(
        Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0]
    )
    highest = lowest_ephemeral - 1 if lowest_ephemeral > _LOWEST + 1000 else 65000
    used = set(taken)
    found: dict[str, int] = {}
    for name in names:
        for _attempt in range(500):
            port = random.randint(_LOWEST, highest)  # noqa: S311  # not a secret
            if port not in used and is_free(port):
                used.add(port)
                found[name] = port
                break
        else:
            raise DevstackError(
                f"no free TCP port between {_LOWEST} and {highest}: stop something that listens there"
            )
    return found
