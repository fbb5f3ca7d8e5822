"""How large an image is, from whatever place it comes."""

from __future__ import annotations

import threading
import time

import pytest

from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.source.credentials import Credentials
from girder_worker_singularity.source.docker_engine import EngineImage
from girder_worker_singularity.source.image_sources import ImageSources, SourceOptions
from girder_worker_singularity.source.origin import ExpectedBytes, Origin
from girder_worker_singularity.testing import FakeCommandRunner

DIGEST = "sha256:" + "ab" * 32
ME = Credentials("me", "word")


def sources(tmp_path, **asks):
    return ImageSources(
        tmp_path,
        FakeCommandRunner(),
        SourceOptions(places=("docker-daemon", "registry")),
        **{"ask_registry": lambda *_: DIGEST, "ask_engine": lambda _: None, **asks},
    )


@pytest.mark.parametrize("image", ["host:5000/team/tool:1", "oras://host:5000/team/tool:1"])
def test_a_registry_is_asked_beside_the_conversion(tmp_path, image):
    asked, may_answer = [], threading.Event()

    def layers(reference, access):
        asked.append((reference, access.credentials))
        assert may_answer.wait(10)
        return {"sha256:a": 7}

    places = sources(tmp_path, ask_layers=layers)
    (origin,) = places.origins(parse_image_reference(image))
    expected = places.expected_bytes(origin, ME)
    assert expected() is None  # nobody waits for it
    may_answer.set()
    until = time.monotonic() + 10
    while expected() is None:
        assert time.monotonic() < until
    assert expected() == ExpectedBytes({"sha256:a": 7})
    ((reference, credentials),) = asked
    assert (reference.canonical_registry, reference.digest, credentials) == ("host:5000", DIGEST, ME)


def test_an_engine_has_told_it(tmp_path):
    image = EngineImage("sha256:x", None, 123)
    places = sources(tmp_path, ask_engine=lambda _: image)
    origin = next(places.origins(parse_image_reference("tool")))
    assert places.expected_bytes(origin, None)() == ExpectedBytes(total=123)


def test_of_what_nobody_knows_nothing_is_told(tmp_path):
    origin = Origin("library", "library://a/b/c:1", "cloud")
    assert sources(tmp_path).expected_bytes(origin, None)() == ExpectedBytes()
