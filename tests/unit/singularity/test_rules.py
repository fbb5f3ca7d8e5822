"""Which images a site allows."""

from __future__ import annotations

import pytest

from girder_worker_singularity.errors import ImageNotAllowed
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.image.rules import ImageRules

DIGEST = "sha256:" + "ab" * 32


def is_allowed(text, **rules):
    try:
        ImageRules(**rules).check(parse_image_reference(text))
    except ImageNotAllowed:
        return False
    return True


@pytest.mark.parametrize(
    ("rules", "text", "allowed"),
    [
        ({}, "anything:1", True),
        ({"allow": ("docker.io/team/*",)}, "team/tool:1", True),
        ({"allow": ("docker.io/team/*",)}, "docker.io/team/sub/tool:1", True),
        ({"allow": ("docker.io/team/*",)}, f"team/tool@{DIGEST}", True),
        ({"allow": ("docker.io/team/*",)}, "other/tool:1", False),
        ({"allow": ("docker.io/team/*",)}, "evil.io/docker.io/team/tool", False),
        ({"allow": ("docker.io/team/*",)}, "docker.io.evil.io/team/tool", False),
        ({"allow": ("docker.io/team/tool:1",)}, "team/tool:10", False),
        ({"deny": ("*:latest",)}, "tool", False),
        ({"deny": ("*:latest",)}, "tool:1", True),
        ({"allow": ("docker.io/*",), "deny": ("docker.io/bad/*",)}, "bad/tool:1", False),
        ({"allow": ("ghcr.io/*",)}, "GHCR.io/a/b", True),
        ({}, "oras://host.lab/a:1", False),
        ({"schemes": ("oras",)}, "oras://host.lab/a:1", True),
        ({"schemes": ("oras",)}, "library://a/b/c:1", False),
        ({"schemes": ("oras",), "allow": ("host.lab/*",)}, "oras://host.lab/a:1", False),
        ({"schemes": ("oras",), "allow": ("oras://host.lab/*",)}, "oras://host.lab/a:1", True),
    ],
)
def test_an_image_is_allowed_by_pattern_and_scheme(rules, text, allowed):
    assert is_allowed(text, **rules) is allowed


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ({"deny": ("*/bad:*",)}, "'*/bad:*'"),
        ({"allow": ("ghcr.io/*",)}, "allow_images"),
    ],
)
def test_the_rule_is_named(rules, word):
    with pytest.raises(ImageNotAllowed) as caught:
        ImageRules(**rules).check(parse_image_reference("team/bad:1"))
    assert word in str(caught.value)
    assert "docker.io/team/bad:1" in str(caught.value)
