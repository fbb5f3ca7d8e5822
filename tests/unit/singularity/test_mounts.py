from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_singularity.errors import MountInvalid
from girder_worker_singularity.run.mounts import Mount, mount_argument, mounts_from_docker_volumes


def test_a_mount_is_one_quoted_record():
    assert mount_argument(Mount("/a dir, x", "/mnt/b, c", read_only=True)) == (
        'type=bind,"source=/a dir, x","destination=/mnt/b, c",ro'
    )


def test_quotes_in_a_path_are_doubled():
    assert '"source=/a""b"' in mount_argument(Mount('/a"b', "/c"))


@given(st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"])), st.booleans())
def test_any_path_survives_the_csv_reader_of_apptainer(tail, read_only):
    argument = mount_argument(Mount(f"/s{tail}", f"/d{tail}", read_only=read_only))
    fields = next(csv.reader(io.StringIO(argument, newline="")))
    assert fields == [
        "type=bind",
        f"source=/s{tail}",
        f"destination=/d{tail}",
        *(["ro"] if read_only else []),
    ]


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("a", "/b"),
        ("/a", "b"),
        ("/a\n", "/b"),
        ("/a", "/b\0"),
        ("", "/b"),
        ("/a", ""),
        ("/a", "/"),
        ("/a", "/x/.."),
    ],
)
def test_paths_that_cannot_be_mounted_are_refused(source, destination):
    with pytest.raises(MountInvalid):
        Mount(source, destination)


@pytest.mark.parametrize(
    ("volumes", "mounts"),
    [
        ({"/h": {"bind": "/c", "mode": "ro"}}, [Mount("/h", "/c", read_only=True)]),
        ({"/h": {"bind": "/c", "mode": "rw"}}, [Mount("/h", "/c")]),
        ({"/h": {"bind": "/c"}}, [Mount("/h", "/c")]),
        ({"/h": {"bind": "/c", "ro": True}}, [Mount("/h", "/c", read_only=True)]),
        ({"/h": {"bind": "/c", "mode": "ro,z"}}, [Mount("/h", "/c", read_only=True)]),
        ({"/h": "/c"}, [Mount("/h", "/c")]),
        (["/h:/c"], [Mount("/h", "/c")]),
        (["/h:/c:ro"], [Mount("/h", "/c", read_only=True)]),
        (["/h 12:30:00/x:/c"], [Mount("/h 12:30:00/x", "/c")]),
        ({}, []),
        ([], []),
    ],
)
def test_the_shapes_of_docker_py_are_understood(volumes, mounts):
    assert mounts_from_docker_volumes(volumes) == mounts


@pytest.mark.parametrize(
    "volumes",
    [
        {"/h": {}},
        {"/h": {"bind": "/c", "mode": "rx"}},
        {"/h": {"bind": "/c", "mode": 5}},
        {"/h": 5},
        {"named-volume": {"bind": "/c"}},
        ["/h"],
        ["/h:/c:rx"],
        ["name:/c"],
        [5],
        "/h:/c",
        [":/c"],
    ],
)
def test_other_shapes_are_refused(volumes):
    with pytest.raises(MountInvalid):
        mounts_from_docker_volumes(volumes)


def test_two_sources_for_one_place_are_refused():
    with pytest.raises(MountInvalid, match="Both"):
        mounts_from_docker_volumes(["/a:/c", "/b:/c/"])


def test_the_same_mount_twice_is_one_mount_with_the_wider_right():
    assert mounts_from_docker_volumes(["/a:/c:ro", "/a:/c"]) == [Mount("/a", "/c")]
