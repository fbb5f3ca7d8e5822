"""The part of Girder's REST interface that transfers and job updates use, on a port of this host.

Answers and errors are those of Girder 5.0.21, as far as the worker looks at them. `mishaps` are used up one by one by
the requests that they fit: an answer with a status, or no answer at all after the request was carried out.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Mishap:
    """What goes wrong with the next request whose method and path begin like this."""

    method: str
    path: str
    status: int = 0
    body: bytes = b'{"message": "trouble"}'
    #: The request is carried out, then the connection is closed without a word.
    is_done: bool = False


@dataclass
class HttpGirder:
    url: str = ""
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    items: dict[str, list[str]] = field(default_factory=dict)
    uploads: dict[str, dict] = field(default_factory=dict)
    mishaps: list[Mishap] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    forms: list[dict] = field(default_factory=list)
    job: dict = field(default_factory=lambda: {"status": 1, "title": "A title", "log": ["one\n", "two\n"]})
    #: Token → id of the user it was made for, and id → login of those who may be seen.
    owners: dict[str, str | None] = field(default_factory=dict)
    logins: dict[str, str] = field(default_factory=dict)
    #: Token with the scope for it → what `user/me` tells; id → name of public groups.
    profiles: dict[str, dict] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    #: Token → what our plugin answers it; None where it is not installed.
    plugin: dict[str, dict] | None = None
    count: int = 0

    def new_id(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count:024d}"

    def contents(self, name: str) -> list[bytes]:
        return [data for known, data in self.files.values() if known == name]

    def asked(self, method: str, path: str) -> int:
        return sum(1 for seen, where in self.requests if seen == method and where.startswith(path))

    def person(self, path: str, token: str) -> tuple[int, object]:
        """Whose a token is (null for one that Girder does not know), or who a user is."""
        if path == "/token/current":
            return 200, {"_id": token, "userId": self.owners[token]} if token in self.owners else None
        user = path.rpartition("/")[2]
        if user == "me":
            return 200, self.profiles.get(token)
        if path.startswith("/group/"):
            if user in self.groups:
                return 200, {"_id": user, "name": self.groups[user]}
            return 401, {"message": "Read access denied for group (user None).", "type": "access"}
        if user in self.logins:
            return 200, {"_id": user, "login": self.logins[user]}
        return 401, {"message": "Read access denied for user (user None).", "type": "access"}

    def plugin_answer(self, token: str) -> tuple[int, object]:
        if self.plugin is None:
            return 404, b"<h2>404 Not Found</h2><p><i>Powered by <a>Girder</a></i></p>"
        if token in self.plugin:
            return 200, self.plugin[token]
        return 401, {"message": "You must be logged in or have a valid auth token.", "type": "access"}

    def answer(self, method: str, path: str, parameters: dict, body: bytes) -> tuple[int, object]:
        parts = path.strip("/").split("/")
        if parts[0] == "job":
            return 200, self.job
        if (method, path) == ("POST", "/file"):
            return self._begin(parameters, "")
        if (method, path) == ("POST", "/file/chunk"):
            return self._chunk(parameters, body)
        if method == "DELETE" and path.startswith("/file/upload/"):
            self.uploads.pop(path.rpartition("/")[2], None)
            return 200, {}
        if (method, path) == ("GET", "/system/version"):
            return 200, {"release": "5.0.21"}
        if (method, path) == ("GET", "/file/offset"):
            upload = self.uploads.get(parameters.get("uploadId", ""))
            if upload is None:
                return 400, {"message": "Invalid upload id", "type": "rest"}
            return 200, {"offset": len(upload["data"])}
        if parts[0] == "item" and parts[-1] == "files":
            names = self.items.get(parts[1], []) if int(parameters.get("offset", 0)) == 0 else []
            return 200, [{"_id": name, "name": self.files[name][0]} for name in names]
        if parts[0] == "file" and parts[-1] == "contents":
            return self._begin(parameters, parts[1])
        if parts[0] == "file" and parts[1] in self.files:
            name, data = self.files[parts[1]]
            return 200, data if parts[-1] == "download" else {
                "_id": parts[1],
                "name": name,
                "size": len(data),
            }
        return 400, {"message": "Invalid file id", "type": "validation", "field": "id"}

    def _begin(self, parameters: dict, replaced: str) -> tuple[int, object]:
        name = parameters.get("name") or self.files[replaced][0]
        size = int(parameters["size"])
        if size == 0:
            return 200, self._finish({"name": name, "data": b"", "replaced": replaced, "parent": parameters})
        upload = self.new_id("u")
        self.uploads[upload] = {
            "name": name,
            "size": size,
            "data": b"",
            "replaced": replaced,
            "parent": parameters,
        }
        return 200, {"_id": upload}

    def _chunk(self, parameters: dict, body: bytes) -> tuple[int, object]:
        upload = self.uploads.get(parameters["uploadId"])
        if upload is None:
            return 400, {"message": "Invalid upload id", "type": "rest"}
        if int(parameters["offset"]) != len(upload["data"]):
            return 400, {"message": "Server has received other bytes", "type": "rest"}
        upload["data"] += body
        if len(upload["data"]) < upload["size"]:
            return 200, {"_id": parameters["uploadId"]}
        del self.uploads[parameters["uploadId"]]
        return 200, self._finish(upload)

    def _finish(self, upload: dict) -> dict:
        file_id = upload["replaced"] or self.new_id("f")
        self.files[file_id] = (upload["name"], upload["data"])
        if not upload["replaced"] and upload["parent"].get("parentType") == "item":
            self.items.setdefault(upload["parent"]["parentId"], []).append(file_id)
        return {"_id": file_id, "itemId": "item-of-it", "name": upload["name"], "size": len(upload["data"])}

    def mishap(self, method: str, path: str) -> Mishap | None:
        for mishap in self.mishaps:
            if mishap.method == method and path.startswith(mishap.path):
                self.mishaps.remove(mishap)
                return mishap
        return None


@contextmanager
def http_girder(kind: type[HttpGirder] = HttpGirder):
    girder = kind()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args) -> None:
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/api/v1")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            girder.requests.append((self.command, path))
            girder.tokens.add(self.headers.get("Girder-Token", ""))
            if "urlencoded" in (self.headers.get("Content-Type") or ""):
                girder.forms.append(dict(parse_qsl(body.decode())))
            mishap = girder.mishap(self.command, path)
            if mishap is not None and not mishap.is_done and mishap.status == 0:
                self.close_connection = True
                return
            if mishap is not None and mishap.status:
                self._send(mishap.status, mishap.body)
                return
            if path == "/worker_slurm/options":
                status, answer = girder.plugin_answer(self.headers.get("Girder-Token", ""))
            elif path.startswith(("/token/current", "/user/", "/group/")):
                status, answer = girder.person(path, self.headers.get("Girder-Token", ""))
            else:
                status, answer = girder.answer(self.command, path, dict(parse_qsl(parts.query)), body)
            if mishap is not None:
                self.close_connection = True
                return
            self._send(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_DELETE = do_POST = do_PUT = _serve  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    girder.url = f"http://127.0.0.1:{server.server_port}/api/v1"
    try:
        yield girder
    finally:
        server.shutdown()
        server.server_close()
