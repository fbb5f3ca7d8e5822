"""A small server of SIFs that speaks what `apptainer pull library://...` asks: it stands in for a site's own library.

The client is the real one. Serves what it was given on a free port of loopback; remembers what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path

_API_VERSION = "2.0.0-alpha.2"


@dataclass
class LibraryServer:
    """Images by `entity/collection/name:tag`. Use as a context manager."""

    token: str = ""
    """What a client has to show, if anything."""
    images: dict[str, Path] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens_seen: list[str] = field(default_factory=list)
    fails_with: int = 0
    """The status that every request is answered with, if any."""
    cuts_after: int | None = None
    """After how many bytes of an image the line breaks, if at all."""
    _server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        """What `apptainer pull --library` is given."""
        return f"http://{self.address}"

    def __enter__(self) -> LibraryServer:  # noqa: PYI034 - no subclass of it is wanted
        handler = type("Handler", (_Handler,), {"library": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    library: LibraryServer

    def do_GET(self) -> None:
        library, path = self.library, urlsplit(self.path).path
        library.asked.append(self.path)
        shown = self.headers.get("Authorization", "")
        library.tokens_seen.append(shown)
        if library.fails_with:
            self._say(library.fails_with, {"error": {"code": library.fails_with, "message": "not today"}})
        elif path == "/assets/config/config.prod.json":  # asked by `apptainer remote add`
            services = ("libraryAPI", "keystoreAPI")
            self._say(200, {name: {"uri": library.url} for name in services})
        elif path == "/version":
            self._say(200, {"data": {"version": "v1", "apiVersion": _API_VERSION}})
        elif library.token and shown != f"Bearer {library.token}":
            self._say(401, {"error": {"code": 401, "message": "Unauthorized"}})
        elif (sif := self._image(path, "/v1/images/")) is not None:
            digest = hashlib.sha256(sif.read_bytes()).hexdigest()
            size = sif.stat().st_size
            self._say(200, {"data": {"hash": f"sha256.{digest}", "size": size, "uploaded": True}})
        elif (sif := self._image(path, "/v1/imagefile/")) is not None:
            self._send(sif.read_bytes())
        else:
            self._say(404, {"error": {"code": 404, "message": "Not Found"}})

    def _image(self, path: str, prefix: str) -> Path | None:
        return self.library.images.get(path.removeprefix(prefix)) if path.startswith(prefix) else None

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.library.cuts_after])
        self.close_connection = True

    def log_message(self, *_words: object) -> None:
        """Says nothing."""
