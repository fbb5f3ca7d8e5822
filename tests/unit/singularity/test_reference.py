from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_singularity.errors import ImageReferenceInvalid
from girder_worker_singularity.image.reference import ImageReference, parse_image_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("alpine", (None, "alpine", None, None)),
        ("user/name:tag", (None, "user/name", "tag", None)),
        ("a/b/c:1.0-rc_1", (None, "a/b/c", "1.0-rc_1", None)),
        ("host:5000/a/b:tag", ("host:5000", "a/b", "tag", None)),
        ("host:5000/a", ("host:5000", "a", None, None)),
        ("ghcr.io/a/b", ("ghcr.io", "a/b", None, None)),
        ("localhost/a", ("localhost", "a", None, None)),
        ("[::1]:5000/a:1", ("[::1]:5000", "a", "1", None)),
        (f"name@{DIGEST}", (None, "name", None, DIGEST)),
        (f"host:5000/a/b:tag@{DIGEST}", ("host:5000", "a/b", "tag", DIGEST)),
        ("docker://user/name:tag", (None, "user/name", "tag", None)),
        ("oras://host:5000/a/b:1", ("host:5000", "a/b", "1", None, "oras")),
        (f"oras://ghcr.io/a@{DIGEST}", ("ghcr.io", "a", None, DIGEST, "oras")),
        ("library://user/collection/tool:1", (None, "user/collection/tool", "1", None, "library")),
        ("library://lib.lab/u/c/tool", ("lib.lab", "u/c/tool", None, None, "library")),
        ("127.0.0.1:5000/team/img:1", ("127.0.0.1:5000", "team/img", "1", None)),
    ],
)
def test_parts_are_taken_apart(text, parts):
    assert parse_image_reference(text) == ImageReference(*parts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "docker://",
        " alpine",
        "alpine ",
        "al pine",
        "alpine\n",
        "alpine:la test",
        "alpine:latest\n",
        "alpine:",
        "Alpine",
        "user/Name:tag",
        "../../etc/passwd",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "-a",
        "--version",
        "a@sha256:123",
        "a@",
        f"a@{DIGEST}x",
        f"@{DIGEST}",
        ":tag",
        "a:b:c",
        "http://host/a:b",
        "docker://docker://a",
        "oras://a/b",
        "oras://",
        "oras://../a:b",
        "oras://oras://host.lab/a",
        "library://../a",
        "library:///a",
        f"library://a/b/c@{DIGEST}",
        "shub://a/b",
        "oci:/etc/layout",
        "docker-archive:/etc/passwd",
        "file:///etc/passwd",
        "name;id",
        "na$(id)me",
        "a" * 300,
        "a:" + "t" * 200,
        "host:123456/a",
        "a\0b",
        "é/b",
    ],
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ImageReferenceInvalid):
        parse_image_reference(text)


def test_an_upper_case_repository_is_refused_with_the_reason():
    with pytest.raises(ImageReferenceInvalid, match="upper-case"):
        parse_image_reference("Team/Tool:1")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("docker.io/alpine:latest", "docker.io/library/alpine:latest"),
        ("index.docker.io/user/name", "docker.io/user/name:latest"),
        ("GHCR.io/a/b:1", "ghcr.io/a/b:1"),
        (f"a/b:1@{DIGEST}", f"docker.io/a/b@{DIGEST}"),
        ("oras://Host:5000/a", "oras://host:5000/a:latest"),
        ("oras://docker.io/a", "oras://docker.io/a:latest"),
        ("library://u/c/tool", "library:///u/c/tool:latest"),
    ],
)
def test_references_to_one_image_have_one_canonical_form(text, canonical):
    assert parse_image_reference(text).canonical == canonical


def test_a_tag_beside_a_digest_is_not_handed_to_apptainer():
    assert parse_image_reference(f"a/b:1@{DIGEST}").uri == f"docker://docker.io/a/b@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("a/b", "docker://docker.io/a/b:latest"),
        ("oras://host.lab/a:1", "oras://host.lab/a:1"),
        (f"oras://host.lab/a:1@{DIGEST}", f"oras://host.lab/a@{DIGEST}"),
        ("library://u/c/tool", "library://u/c/tool"),
        ("library://lib.lab/u/c/tool:1", "library://lib.lab/u/c/tool:1"),
    ],
)
def test_apptainer_is_given_the_scheme(text, uri):
    assert parse_image_reference(text).uri == uri


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("oras://host:5000/a/b:c", "oras+host_5000_a_b_c.sif"),
        ("library://u/c/tool:1", "library+u_c_tool_1.sif"),
        ("team/tool:1", "team_tool_1.sif"),
        ("alpine", "alpine.sif"),
        ("host:5000/team/tool:1", "host_5000_team_tool_1.sif"),
        (f"a@{DIGEST}", f"a_{DIGEST.replace(':', '_')}.sif"),
        ("docker://a/b:c", "a_b_c.sif"),
    ],
)
def test_the_sif_has_the_name_that_the_digital_slide_archive_uses(text, name):
    assert parse_image_reference(text).sif_name == name


def test_images_with_one_sif_name_differ_in_the_unambiguous_one():
    one, other = parse_image_reference("a/b:c"), parse_image_reference("a_b:c")
    assert one.sif_name == other.sif_name
    assert one.unambiguous_sif_name != other.unambiguous_sif_name


component = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?", fullmatch=True)
references = st.builds(
    ImageReference,
    scheme=st.just("docker"),
    registry=st.none() | st.sampled_from(["localhost", "host:5000", "ghcr.io", "127.0.0.1:80"]),
    repository=st.lists(component, min_size=1, max_size=20)
    .map("/".join)
    .filter(
        lambda path: len(path) < 250 and "." not in path.split("/")[0] and not path.startswith("localhost")
    ),
    tag=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True),
    digest=st.none() | st.just(DIGEST),
)


@given(references)
def test_a_reference_survives_being_written_and_read(reference):
    assert parse_image_reference(str(reference)) == reference


@given(references)
def test_every_file_name_is_one_plain_component_with_room_for_its_note(reference):
    for name in (reference.sif_name, reference.unambiguous_sif_name):
        assert "/" not in name
        assert not name.startswith((".", "-"))
        assert len(name) <= 255 - len(".json") - len(".tmp-~0123456789ab")


@given(references, references)
def test_two_images_never_share_the_unambiguous_name(one, other):
    if one.canonical != other.canonical:
        assert one.unambiguous_sif_name != other.unambiguous_sif_name


@given(st.text(max_size=60))
def test_any_text_is_either_taken_apart_or_refused(text):
    try:
        reference = parse_image_reference(text)
    except ImageReferenceInvalid:
        return
    assert ".." not in reference.sif_name.split("_")
