"""Under which name an image is pulled."""

from __future__ import annotations

import pytest

from girder_worker_singularity.errors import SettingsInvalid
from girder_worker_singularity.image.pull_names import PullNames
from girder_worker_singularity.image.reference import parse_image_reference

DIGEST = "sha256:" + "ab" * 32
JARVICE = PullNames("registry.lab:5000", "system/images", "stable")
MIRRORED = PullNames(
    registry_map={
        "docker.io": "mirror.lab:5000/hub",
        "docker.io/team": "mirror.lab:5000/team-of-hub",
        "GHCR.io": "mirror.lab",
        "registry.lab:5000/old": "registry.lab:5000/new",
    }
)


def pulled(names, text):
    return names.pulled(parse_image_reference(text)).canonical


@pytest.mark.parametrize(
    "text",
    ["tool", "team/tool:1", "host:5000/a/b", f"a@{DIGEST}", "oras://host.lab/a:1", "library://u/c/t:1"],
)
def test_without_settings_an_image_is_pulled_as_it_is_written(text):
    reference = parse_image_reference(text)
    assert PullNames().pulled(reference) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tool", "registry.lab:5000/system/images/tool:stable"),
        ("tool:1", "registry.lab:5000/system/images/tool:1"),
        (f"tool@{DIGEST}", f"registry.lab:5000/system/images/tool@{DIGEST}"),
        ("team/tool", "registry.lab:5000/team/tool:stable"),
        ("docker.io/tool", "docker.io/library/tool:latest"),
        ("other.lab/tool", "other.lab/tool:latest"),
        ("oras://other.lab/tool", "oras://other.lab/tool:latest"),
    ],
)
def test_names_without_a_registry_are_completed(text, expected):
    assert pulled(JARVICE, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tool:1", "mirror.lab:5000/hub/library/tool:1"),
        ("other/tool:1", "mirror.lab:5000/hub/other/tool:1"),
        ("team/tool:1", "mirror.lab:5000/team-of-hub/tool:1"),
        ("teams/tool:1", "mirror.lab:5000/hub/teams/tool:1"),
        (f"ghcr.io/a/b:1@{DIGEST}", f"mirror.lab/a/b@{DIGEST}"),
        ("registry.lab:5000/old/x", "registry.lab:5000/new/x:latest"),
        ("registry.lab:5000/older/x", "registry.lab:5000/older/x:latest"),
        ("registry.lab/old/x", "registry.lab/old/x:latest"),
        ("oras://ghcr.io/a:1", "oras://mirror.lab/a:1"),
        ("library://u/c/t:1", "library:///u/c/t:1"),
    ],
)
def test_a_mirror_stands_for_the_longest_prefix(text, expected):
    assert pulled(MIRRORED, text) == expected


def test_a_completed_name_may_have_a_mirror():
    names = PullNames("registry.lab", registry_map={"registry.lab": "mirror.lab/x"})
    assert pulled(names, "team/tool:1") == "mirror.lab/x/team/tool:1"


def test_the_name_of_the_sif_does_not_change():
    reference = parse_image_reference("tool")
    assert JARVICE.pulled(reference) != reference
    assert reference.sif_name == "tool.sif"


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"default_registry": "no host"}, "default_registry"),
        ({"default_registry": "host/path"}, "default_registry"),
        ({"default_registry": "https://host"}, "default_registry"),
        ({"repository_base": "../up"}, "repository_base"),
        ({"default_tag": "a:b"}, "default_tag"),
        ({"registry_map": {"docker.io": "nothost"}}, "registry_map"),
        ({"registry_map": {"docker.io": "http://host"}}, "registry_map"),
        ({"registry_map": {"no host": "mirror.lab"}}, "registry_map"),
    ],
)
def test_what_makes_no_name_is_refused_at_the_start(wrong, word):
    with pytest.raises(SettingsInvalid, match=word):
        PullNames(**wrong)
