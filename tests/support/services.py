"""Services of a test's own on loopback: where they can listen, whether they answer, and their end."""

from __future__ import annotations

import contextlib
import socket
import subprocess

import requests

HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    (port,) = free_ports(1)
    return port


def listens(port: int) -> bool:
    """Whether something accepts connections on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def answers(address: str) -> bool:
    """Whether a GET of this address succeeds."""
    try:
        return requests.get(address, timeout=5).ok
    except requests.ConnectionError:
        return False


def end(process: subprocess.Popen[bytes], *, seconds: float = 30.0) -> None:
    """Ends a process that was started here: it is asked to, and killed if it has not ended after so many seconds."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(seconds)
