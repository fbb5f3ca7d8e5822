"""What a site says about some images."""

from __future__ import annotations

import pytest

from girder_worker_singularity.run.image_rules import ImageRule, parse_image_rule, rule_for

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("writable=tmpfs", ImageRule(writable="tmpfs")),
        ("writable=overlay", ImageRule(writable="overlay")),
        ("writable = overlay:600, fakeroot", ImageRule(writable="overlay", overlay_mib=600, fakeroot=True)),
        ("net=none, gpu=rocm", ImageRule(network_none=True, gpu="rocm")),
        ("net=none\ngpu=none", ImageRule(network_none=True, gpu="none")),
        ("fakeroot=no, writable=none, net=host", ImageRule(writable="none", fakeroot=False, network_none=False)),
    ],
)  # fmt: skip
def test_words_make_a_rule(text, rule):
    assert parse_image_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    ["writeable=tmpfs", "writable", "writable=overlay:0", "writable=overlay:x", "writable=overlay:99999999", "net=bridge",
     "gpu", "gpu=nvidia", "fakeroot=maybe", "--fakeroot", "", " , "],
)  # fmt: skip
def test_a_word_that_is_not_known_is_named_with_those_that_are(text):
    with pytest.raises(ValueError, match=r"known words are .*writable=overlay:MIB"):
        parse_image_rule(text)


@pytest.mark.parametrize(
    "pattern",
    [
        "team/tool",
        "team/*",
        "*",
        "docker.io/team/*",
        "team/tool:1",
        "docker.io/team/tool:1",
        "*/tool",
        "team/[st]ool",
    ],
)
def test_a_pattern_fits_the_name_with_or_without_tag_and_in_full(pattern):
    assert rule_for({pattern: ImageRule(fakeroot=True)}, "team/tool:1").fakeroot


@pytest.mark.parametrize("pattern", ["tool", "team", "team/tool:2", "other/*", "TEAM/tool", "am/tool"])
def test_a_pattern_fits_the_whole_name_or_not_at_all(pattern):
    assert rule_for({pattern: ImageRule(fakeroot=True)}, "team/tool:1") == ImageRule()


def test_an_image_by_digest_is_known_by_its_name():
    assert rule_for({"team/tool": ImageRule(fakeroot=True)}, f"team/tool@{DIGEST}").fakeroot


def test_of_two_patterns_the_later_one_counts_where_they_differ():
    rules = {
        "*": ImageRule(network_none=True, writable="tmpfs"),
        "team/*": ImageRule(writable="none", fakeroot=True),
        "x": ImageRule(gpu="rocm"),
    }
    assert rule_for(rules, "team/tool") == ImageRule(writable="none", fakeroot=True, network_none=True)


def test_something_that_is_no_reference_is_matched_as_it_stands():
    assert rule_for({"/images/*.sif": ImageRule(fakeroot=True)}, "/images/A.sif").fakeroot
