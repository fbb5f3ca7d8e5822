from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

import pytest

from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.source.docker_engine import EngineImage, _saved_bytes, engine_image

DIGEST = "sha256:" + "ab" * 32
IMAGES = {
    "team/tool:1": {
        "Id": "sha256:1",
        "RepoDigests": [f"other/tool@sha256:{'0' * 64}", f"team/tool@{DIGEST}"],
    },
    "built-here:1": {"Id": "sha256:2", "RepoDigests": []},
}


class Engine(BaseHTTPRequestHandler):
    """As much of Docker's API as is asked for here."""

    def do_GET(self):
        path = unquote(self.path)
        name = path.partition("/images/")[2].removesuffix("/json")
        if path.endswith("/version"):
            status, answer = 200, {"ApiVersion": "1.41", "MinAPIVersion": "1.12"}
        elif name in IMAGES:
            status, answer = 200, IMAGES[name]
        else:
            status, answer = 404, {"message": f"No such image: {name}"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "docker.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), Engine) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"DOCKER_HOST": f"unix://{path}"}
        server.shutdown()


def ask(image, environment):
    return engine_image(parse_image_reference(image), environment)


def test_an_image_of_the_engine_is_known_with_the_digest_of_its_own_repository(engine):
    assert ask("team/tool:1", engine) == EngineImage("sha256:1", DIGEST)


def test_an_image_that_was_built_here_has_no_digest(engine):
    assert ask("built-here:1", engine) == EngineImage("sha256:2", None)


def test_an_image_that_the_engine_lacks_is_not_there(engine):
    assert ask("team/other:1", engine) is None


def test_without_an_engine_nothing_is_there(tmp_path):
    assert ask("team/tool:1", {"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}) is None


def test_a_socket_that_nobody_listens_at_is_no_engine(tmp_path):
    socketserver.UnixStreamServer(str(tmp_path / "dead.sock"), Engine).server_close()
    assert ask("team/tool:1", {"DOCKER_HOST": f"unix://{tmp_path}/dead.sock"}) is None


def test_an_engine_that_cannot_be_reached_is_no_engine():
    assert ask("team/tool:1", {"DOCKER_HOST": "tcp://127.0.0.1:1"}) is None


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"Size": 5, "GraphDriver": {"Name": "overlay2"}}, 5),
        ({"Size": 5, "GraphDriver": {"Name": "overlayfs"}}, None),
        ({"Size": 5}, None),
        ({"Size": 0, "GraphDriver": {"Name": "vfs"}}, None),
        ({"GraphDriver": None}, None),
    ],
)
def test_the_size_of_an_image_is_known_where_layers_are_plain(attributes, size):
    assert _saved_bytes(attributes) == size
