"""A slow line between the worker and Girder: forwards TCP on loopback, at most so many bytes a second."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE = 16 * 1024


@dataclass
class SlowLink:
    """Listens on a free port of loopback and forwards to one address. Use as a context manager."""

    target: str
    bytes_per_second: float = 0.0
    #: While set, new connections are refused and present ones are cut: the server is away.
    is_cut: bool = False
    port: int = 0
    _listener: socket.socket = field(default_factory=socket.socket)
    _open: set[socket.socket] = field(default_factory=set)

    def __enter__(self) -> SlowLink:  # noqa: PYI034 - no subclass of it is wanted
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Breaks every connection there is."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def url(self, path: str) -> str:
        """An address that leads through this line."""
        return f"http://127.0.0.1:{self.port}{path}"

    def _accept(self) -> None:
        parts = urlsplit(self.target)
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            try:
                server = socket.create_connection(
                    (parts.hostname or "127.0.0.1", parts.port or 80), timeout=30
                )
            except OSError:
                client.close()
                continue
            for end in (client, server):
                # What comes in two pieces, as a request with a body, must not wait for an acknowledgement in between.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                # A rate is what this stands for; there is no condition to wait for.
                if self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._open.discard(end)
