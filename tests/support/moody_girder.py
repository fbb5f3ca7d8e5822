"""A way to the real Girder that answers for it when told to: a proxy or a server in trouble, in front of it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import requests

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOP = ("connection", "content-length", "transfer-encoding", "content-encoding", "date", "server")


@dataclass
class MoodyGirder:
    """Forwards everything to `target`, or answers with `status` what `is_meant` by its method and path."""

    target: str
    port: int = 0
    #: 0: everything is forwarded.
    status: int = 0
    method: str = ""
    path: str = ""
    #: How many requests were answered here.
    answered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        """An address that leads through here."""
        return f"http://127.0.0.1:{self.port}{path}"

    def answer_with(self, status: int, method: str = "", path: str = "") -> None:
        """From now on these requests, all by default, get this status; 0 ends that."""
        with self.lock:
            self.status, self.method, self.path, self.answered = status, method, path, 0

    def is_meant(self, method: str, path: str) -> bool:
        """Whether this request is answered here."""
        with self.lock:
            if not self.status or self.method not in ("", method) or self.path not in path:
                return False
            self.answered += 1
            return True


@contextmanager
def moody_girder(target: str) -> Iterator[MoodyGirder]:
    """Listens on a free port of loopback as long as the block lasts."""
    girder = MoodyGirder(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: object) -> None:
            """Tests are quiet."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if girder.is_meant(self.command, self.path):
                self._send(girder.status, {"Content-Type": "text/html"}, b"<html>trouble</html>")
                return
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", *_HOP)
            }
            found = requests.request(
                self.command, f"{girder.target}{self.path}", headers=headers, data=body, timeout=60
            )
            kept = {name: value for name, value in found.headers.items() if name.lower() not in _HOP}
            self._send(found.status_code, kept, found.content)

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_DELETE = do_POST = do_PUT = _serve  # noqa: N815 - names of http.server

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    girder.port = server.server_port
    try:
        yield girder
    finally:
        server.shutdown()
        server.server_close()
