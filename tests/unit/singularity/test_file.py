from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from girder_worker_singularity.errors import SifDamaged, SifUnsupported
from girder_worker_singularity.sif.file import read_sif
from tests.support.sif_files import sif_bytes

OCI = {"Entrypoint": ["./run"], "WorkingDir": "/w"}


def written(tmp_path, content):
    path = tmp_path / "x.sif"
    path.write_bytes(content)
    return path


def test_configuration_labels_and_architecture_are_read(tmp_path):
    contents = read_sif(written(tmp_path, sif_bytes(oci_config=OCI, labels={"entry_path": "/x y"})))
    assert contents.oci_config == OCI
    assert contents.labels == {"entry_path": "/x y"}
    assert contents.architecture == "amd64"


def test_a_sif_from_a_sandbox_has_no_oci_configuration(tmp_path):
    assert read_sif(written(tmp_path, sif_bytes())).oci_config is None


@pytest.mark.parametrize("size", [0, 10, 127, 128, 4096, 20000, 33000])
def test_a_file_that_was_cut_off_is_damaged(tmp_path, size):
    with pytest.raises(SifDamaged):
        read_sif(written(tmp_path, sif_bytes(oci_config=OCI)[:size]))


def test_a_file_that_lacks_its_last_byte_is_damaged(tmp_path):
    with pytest.raises(SifDamaged, match="beyond its end"):
        read_sif(written(tmp_path, sif_bytes(oci_config=OCI)[:-1]))


def test_another_kind_of_file_is_no_sif(tmp_path):
    with pytest.raises(SifDamaged, match="not a SIF"):
        read_sif(written(tmp_path, b"<html>" * 100))


def test_a_file_system_that_is_not_one_is_damage(tmp_path):
    with pytest.raises(SifDamaged, match="file system"):
        read_sif(written(tmp_path, sif_bytes(file_system=bytes(5000))))


def test_an_oci_sif_is_named_as_such(tmp_path):
    content = bytearray(sif_bytes(oci_config=OCI))
    partition = 4096 + 3 * 585
    content[partition : partition + 4] = (0x400A).to_bytes(4, "little")
    with pytest.raises(SifUnsupported, match="OCI-SIF"):
        read_sif(written(tmp_path, bytes(content)))


def test_a_missing_file_is_not_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_sif(tmp_path / "nothing.sif")


def test_two_builds_have_two_identities(tmp_path):
    one = read_sif(written(tmp_path, sif_bytes())).identity
    other = read_sif(written(tmp_path, sif_bytes())).identity
    assert one != other


@pytest.mark.parametrize(
    ("definition", "overrides"),
    [
        ("bootstrap: docker\nfrom: a/b:1\n", False),
        ("Bootstrap: docker\nFrom: a\n%runscript\n  exec x\n", True),
        ("Bootstrap: docker\nFrom: a\n  %runscript\n  exec x\n", True),
        ("Bootstrap: docker\nFrom: a\n# no %runscript here\n%post\n  true\n", False),
        ("Bootstrap: localimage\nFrom: a.sif\n", True),
        ("", False),
    ],
)
def test_a_definition_that_may_replace_what_is_started_is_noticed(tmp_path, definition, overrides):
    assert read_sif(written(tmp_path, sif_bytes(definition=definition))).overrides_runscript is overrides


def test_where_it_was_pulled_from_is_known(tmp_path):
    assert (
        read_sif(written(tmp_path, sif_bytes(definition="bootstrap: docker\nfrom: a/b:1\n"))).pulled_from
        == "a/b:1"
    )
    assert (
        read_sif(
            written(tmp_path, sif_bytes(definition="bootstrap: docker-archive\nfrom: x.tar\n"))
        ).pulled_from
        is None
    )


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 34000), garbage=st.binary(min_size=1, max_size=16))
def test_scribbled_bytes_are_damage_or_harmless_but_never_a_crash(tmp_path_factory, position, garbage):
    content = bytearray(sif_bytes(oci_config=OCI))
    content[position : position + len(garbage)] = garbage
    path = tmp_path_factory.getbasetemp() / "scribbled.sif"
    path.write_bytes(content)
    with contextlib.suppress(SifDamaged):
        read_sif(path)
