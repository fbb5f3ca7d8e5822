from __future__ import annotations

import json

import pytest
import requests
from requests.adapters import BaseAdapter

from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.source.credentials import Credentials
from girder_worker_singularity.source.proxies import Proxies
from girder_worker_singularity.source.registry_connection import RegistryAccess
from girder_worker_singularity.source.registry_digest import registry_digest

DIGEST = "sha256:" + "ab" * 32
ME = Credentials("me", "word")
IMAGE = parse_image_reference("registry.example/team/tool:1")
MANIFEST = "https://registry.example/v2/team/tool/manifests/1"
BEARER = {
    "WWW-Authenticate": 'Bearer realm="https://auth.example/token",service="s",scope="repository:team/tool:pull"'
}
FOUND = (200, {"Docker-Content-Digest": DIGEST})


class Web(BaseAdapter):
    """Answers requests by a function, and remembers them."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.seen = []

    def send(self, request, **_options):
        self.seen.append(request)
        outcome = self.answer(request)
        if isinstance(outcome, Exception):
            raise outcome
        status, headers, *body = outcome
        response = requests.Response()
        response.status_code, response.url, response.request = status, request.url, request
        response.headers.update(headers)
        response._content = json.dumps(body[0]).encode() if body else b""
        response._content_consumed = True
        return response

    def close(self):
        pass

    def session(self):
        session = requests.Session()
        session.trust_env = False
        session.mount("http://", self)
        session.mount("https://", self)
        return session


def ask(answer, image=IMAGE, **options):
    web = Web(answer)
    return registry_digest(image, RegistryAccess(session=web.session(), **options)), web.seen


def test_the_digest_is_what_the_registry_says():
    digest, seen = ask(lambda _: FOUND)
    assert digest == DIGEST
    assert [(request.method, request.url) for request in seen] == [("HEAD", MANIFEST)]
    assert "image.index" in seen[0].headers["Accept"]


def test_a_reference_with_a_digest_needs_no_question():
    digest, seen = ask(lambda _: FOUND, image=parse_image_reference(f"a/b@{DIGEST}"))
    assert (digest, seen) == (DIGEST, [])


def test_docker_hub_is_asked_at_its_real_address():
    _, seen = ask(lambda _: FOUND, image=parse_image_reference("alpine"))
    assert seen[0].url == "https://registry-1.docker.io/v2/library/alpine/manifests/latest"


def test_a_registry_without_tls_is_asked_so_only_if_it_is_listed():
    _, seen = ask(lambda _: FOUND, plain_http_registries=("registry.example",))
    assert seen[0].url.startswith("http://registry.example/")


def test_a_token_is_fetched_where_the_registry_wants_one():
    def answer(request):
        if request.url.startswith("https://auth.example/token"):
            return 200, {}, {"token": "t0ken"}
        return FOUND if request.headers.get("Authorization") == "Bearer t0ken" else (401, BEARER)

    digest, seen = ask(answer)
    assert digest == DIGEST
    assert "scope=repository%3Ateam%2Ftool%3Apull" in seen[1].url
    assert "Authorization" not in seen[1].headers


def test_an_account_is_given_to_who_asks_for_one():
    def answer(request):
        allowed = request.headers.get("Authorization") == f"Basic {ME.basic}"
        return FOUND if allowed else (401, {"WWW-Authenticate": 'Basic realm="x"'})

    digest, seen = ask(answer, credentials=ME)
    assert digest == DIGEST
    assert "Authorization" not in seen[0].headers


def test_credentials_are_not_sent_before_they_are_asked_for():
    _, seen = ask(lambda _: FOUND, credentials=ME)
    assert "Authorization" not in seen[0].headers


def test_a_password_does_not_leave_tls():
    challenge = {"WWW-Authenticate": 'Bearer realm="http://auth.example/token"'}
    digest, seen = ask(lambda _: (401, challenge), credentials=ME)
    assert digest is None
    assert len(seen) == 1


def test_a_sif_in_a_registry_has_a_digest_too():
    _, seen = ask(lambda _: FOUND, image=parse_image_reference("oras://registry.example/team/tool:1"))
    assert seen[0].url == MANIFEST


def test_proxies_are_used_but_for_the_hosts_without():
    proxies = Proxies("http://p:1", "http://p:2", "registry.example")
    web = Web(lambda _: FOUND)
    session = web.session()
    access = RegistryAccess(session=session, proxies=proxies)
    registry_digest(IMAGE, access)
    assert session.proxies == {}
    registry_digest(parse_image_reference("other.example/a"), access)
    assert session.proxies == {"http": "http://p:1", "https": "http://p:2"}


@pytest.mark.parametrize(
    "outcome",
    [
        (404, {}),
        (500, {}),
        (200, {}),
        (200, {"Docker-Content-Digest": "sha256:odd"}),
        (401, {}),
        (401, {"WWW-Authenticate": 'Bearer realm="file:///etc/passwd"'}),
        requests.ConnectionError("refused"),
        requests.Timeout("slow"),
    ],
)
def test_whatever_goes_wrong_the_digest_is_just_not_known(outcome):
    assert ask(lambda _: outcome)[0] is None
