"""The audit with pip-audit itself, against services that are made up; run by `nox -s audit`, which has pip-audit."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.packaging.audit import PINS, pinned

_AUDIT = Path(__file__).with_name("audit.py")
_OF_THE_PROBE = ("jinja2", "2.10")


def _known(name: str, number: int) -> dict[str, object]:
    """What the database says against a package: it is mended in version 99."""
    return {
        "id": f"TEST-{number}",
        "schema_version": "1.0.0",
        "aliases": [f"CVE-{number}"],
        "summary": "made up",
        "affected": [
            {
                "package": {"name": name, "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}],
            }
        ],
    }


class Service(ThreadingHTTPServer):
    """Speaks as the OSV database does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.known: dict[tuple[str, str], dict[str, object]] = {_OF_THE_PROBE: _known("jinja2", 1)}
        self.asked: set[tuple[str, str]] = set()


class _Answer(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        version = (question["package"]["name"], question["version"])
        self.server.asked.add(version)
        found = self.server.known.get(version)
        body = json.dumps({"vulns": [found]} if found else {}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def service():
    with Service() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(service, monkeypatch):
    def run(*arguments: str, port: int = 0) -> tuple[int, list[str]]:
        monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{port or service.server_port}/v1/query")
        argv = [sys.executable, str(_AUDIT), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
        return done.returncode, done.stdout.splitlines()

    return run


def test_what_is_pinned_is_asked_about_and_nothing_found(run, service):
    code, lines = run()
    assert (code, len(lines)) == (0, 1), lines
    assert f"nothing is known against {len(service.asked) - 1} versions" in lines[0]
    assert {"celery", "girder", "redis"} <= {name for name, _ in service.asked}


def test_a_finding_fails(run, service):
    (pin,) = (version for version in pinned(PINS.read_text()) if version.startswith("celery=="))
    version = ("celery", pin.partition("==")[2])
    service.known[version] = _known("celery", 2)
    code, lines = run("--if-reachable")
    assert code == 1
    assert lines[0] == f"audit: celery=={version[1]}: CVE-2 (TEST-2), fixed in 99"


@pytest.mark.parametrize(
    ("how", "arguments", "expected"),
    [("silent", (), 3), ("empty", (), 3), ("failing", (), 3), ("empty", ("--if-reachable",), 0)],
)
def test_nobody_to_ask_is_said_and_is_no_finding(run, service, how, arguments, expected):
    port = 0
    if how == "silent":
        port = 1
    elif how == "empty":
        service.known.clear()
    else:
        service.status = 503
    code, lines = run(*arguments, port=port)
    assert code == expected
    assert [line.startswith("audit: NO AUDIT WAS MADE: ") for line in lines] == [True], lines
