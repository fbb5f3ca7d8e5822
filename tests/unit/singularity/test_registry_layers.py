from __future__ import annotations

import platform

import pytest
import requests

from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.source.registry_connection import RegistryAccess
from girder_worker_singularity.source.registry_layers import registry_layers
from tests.unit.singularity.test_registry_digest import BEARER, DIGEST, ME, Web

HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
IMAGE = parse_image_reference(f"registry.example/team/tool@{DIGEST}")
BASE = "https://registry.example/v2/team/tool/manifests/"
MANIFEST = {
    "config": {"digest": "sha256:c", "size": 5},
    "layers": [{"digest": "sha256:a", "size": 100}, {"digest": "sha256:b", "size": 50}],
}
SIZES = {"sha256:c": 5, "sha256:a": 100, "sha256:b": 50}


def ask(answer, image=IMAGE, **options):
    web = Web(answer)
    return registry_layers(image, RegistryAccess(session=web.session(), **options)), web.seen


def test_the_parts_of_an_image_have_the_sizes_of_its_manifest():
    sizes, seen = ask(lambda _: (200, {}, MANIFEST))
    assert sizes == SIZES
    assert [(request.method, request.url) for request in seen] == [("GET", BASE + DIGEST)]


def test_a_part_that_is_named_twice_is_fetched_once():
    twice = {**MANIFEST, "layers": MANIFEST["layers"] + MANIFEST["layers"]}
    assert ask(lambda _: (200, {}, twice))[0] == SIZES


def test_of_several_architectures_that_of_this_machine_counts():
    index = {
        "manifests": [
            {"digest": "sha256:other", "platform": {"os": "linux", "architecture": "other"}},
            {"digest": "sha256:odd"},
            {"digest": "sha256:mine", "platform": {"os": "linux", "architecture": HERE}},
        ]
    }
    sizes, seen = ask(lambda request: (200, {}, MANIFEST if request.url.endswith("mine") else index))
    assert sizes == SIZES
    assert seen[-1].url == f"{BASE}sha256:mine"


def test_an_account_is_given_to_who_asks_for_one():
    def answer(request):
        if request.url.startswith("https://auth.example/token"):
            return 200, {}, {"token": "t0ken"}
        known = request.headers.get("Authorization") == "Bearer t0ken"
        return (200, {}, MANIFEST) if known else (401, BEARER)

    sizes, seen = ask(answer, credentials=ME)
    assert sizes == SIZES
    assert [request.headers.get("Authorization") for request in seen] == [
        None,
        f"Basic {ME.basic}",
        "Bearer t0ken",
    ]


@pytest.mark.parametrize(
    "outcome",
    [
        (404, {}),
        (401, {}),
        (200, {}),
        (200, {}, []),
        (200, {}, {"layers": 3, "config": None}),
        (200, {}, {**MANIFEST, "layers": [{"digest": "sha256:a", "size": "large"}]}),
        (200, {}, {"manifests": []}),
        (200, {}, {"schemaVersion": 1, "fsLayers": []}),
        requests.ConnectionError("refused"),
    ],
)
def test_whatever_goes_wrong_the_sizes_are_just_not_known(outcome):
    assert ask(lambda _: outcome)[0] is None


def test_a_connection_that_fails_once_is_tried_again():
    outcomes = [requests.ConnectionError("reset"), (200, {}, MANIFEST)]

    def answer(_request):
        return outcomes.pop(0)

    assert ask(answer)[0] == SIZES
    outcomes[:] = [(404, {}), (200, {}, MANIFEST)]
    assert ask(answer)[0] is None
    assert len(outcomes) == 1
