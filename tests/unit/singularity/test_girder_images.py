from __future__ import annotations

import pytest
import requests

from girder_worker_singularity.errors import GirderListUnknown
from girder_worker_singularity.source.girder_images import GirderAccount, girder_images
from tests.unit.singularity.test_registry_digest import DIGEST, Web

KEY = GirderAccount(api_key="k3y")
API = "https://girder.example/api/v1"
LISTED = {"team/tool": {"1": {"A": {}}, DIGEST: {}}, "Not An Image": {"x": {}}, "empty": {}}


class Girder:
    def __init__(self, **changes):
        self.answers = {
            "/api_key/token": (200, {}, {"authToken": {"token": "t0ken"}}),
            "/user/me": (200, {}, {"login": "admin", "admin": True}),
            "/slicer_cli_web/docker_image": (200, {}, LISTED),
            **{f"/{path}": answer for path, answer in changes.items()},
        }

    def __call__(self, request):
        outcome = self.answers[request.url.removeprefix(API)]
        if request.url.endswith("/token") or request.headers["Girder-Token"] == "t0ken":
            return outcome
        return 401, {}


def ask(girder, url="https://girder.example", account=KEY):
    web = Web(girder)
    return girder_images(url, account, session=web.session()), web.seen


@pytest.mark.parametrize("url", ["https://girder.example", "https://girder.example/", API, f"{API}/"])
def test_the_images_are_those_that_an_administrator_sees(url):
    images, seen = ask(Girder(), url)
    assert images == {"docker.io/team/tool:1", f"docker.io/team/tool@{DIGEST}"}
    assert [request.url for request in seen] == [
        f"{API}/api_key/token",
        f"{API}/user/me",
        f"{API}/slicer_cli_web/docker_image",
    ]
    assert seen[0].body == "key=k3y"


def test_a_token_is_used_as_it_is():
    _, seen = ask(Girder(), account=GirderAccount(token="t0ken"))
    assert "token" not in seen[0].url
    assert "t0ken" not in repr(GirderAccount("k", "t0ken"))


@pytest.mark.parametrize(
    "changes",
    [
        {"api_key/token": (400, {}, {"message": "Invalid API key"})},
        {"api_key/token": (200, {}, {})},
        {"user/me": (200, {}, {"login": "somebody", "admin": False})},
        {"user/me": (200, {})},
        {"user/me": (302, {"Location": "https://elsewhere.example/"})},
        {"slicer_cli_web/docker_image": (403, {})},
        {"slicer_cli_web/docker_image": (200, {}, ["a"])},
        {"slicer_cli_web/docker_image": (200, {}, {"a": None})},
        {"slicer_cli_web/docker_image": requests.ConnectionError("k3y refused")},
    ],
)
def test_a_list_that_may_not_be_whole_is_none(changes):
    with pytest.raises(GirderListUnknown) as caught:
        ask(Girder(**changes))
    assert "k3y" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


def test_a_girder_that_has_no_images_says_so():
    assert ask(Girder(**{"slicer_cli_web/docker_image": (200, {}, {})}))[0] == frozenset()
