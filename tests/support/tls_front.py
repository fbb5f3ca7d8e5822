"""TLS in front of a port of loopback, with an authority and a certificate of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PIECE = 16 * 1024


@dataclass(frozen=True)
class Authority:
    """A new certificate authority, and a certificate for `localhost` that it has signed."""

    directory: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.directory / "ca.pem"

    @classmethod
    def make(cls, directory: Path) -> Authority:
        """Makes both, with openssl."""
        directory.mkdir(mode=0o755, parents=True)
        (directory / "names").write_text("subjectAltName=DNS:localhost\n", encoding="ascii")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
        for argv in (
            ["req", "-x509", *key, "-subj", "/CN=Tests", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"],
            ["req", *key, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem"],
            [
                *[
                    "x509",
                    "-req",
                    "-in",
                    "request.pem",
                    "-CA",
                    "ca.pem",
                    "-CAkey",
                    "ca.key",
                    "-CAcreateserial",
                ],
                *["-days", "2", "-extfile", "names", "-out", "cert.pem"],
            ],
        ):
            subprocess.run(["openssl", *argv], cwd=directory, check=True, capture_output=True, timeout=60)
        return cls(directory)

    def context(self) -> ssl.SSLContext:
        """What a server needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "cert.pem", self.directory / "key.pem")
        return context


@dataclass
class TlsFront:
    """The port that listens, and how many connections have spoken TLS on it."""

    port: int = 0
    accepted: int = 0
    _open: set[socket.socket] = field(default_factory=set)

    def carry(self, client: socket.socket, context: ssl.SSLContext, target: int) -> None:
        """One connection, until either end closes it."""
        with contextlib.suppress(OSError):
            inner = context.wrap_socket(client, server_side=True)
            self.accepted += 1
            server = socket.create_connection(("127.0.0.1", target), timeout=30)
            self._open |= {inner, server}
            back = threading.Thread(target=_forward, args=(server, inner), daemon=True)
            back.start()
            _forward(inner, server)

    def close(self) -> None:
        """Ends all connections."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def tls_front(target: int, authority: Authority) -> Iterator[TlsFront]:
    """A free port of loopback that speaks TLS and forwards to this one."""
    front, context = TlsFront(), authority.context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        front.port = listener.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=front.carry, args=(client, context, target), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield front
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            front.close()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
