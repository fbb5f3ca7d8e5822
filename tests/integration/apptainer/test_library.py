"""SIFs of a library, fetched by the real Apptainer from a server that stands in for a site's own."""

from __future__ import annotations

import os
import subprocess

import pytest

from girder_worker_singularity import LocalCommandRunner, SystemClock, run_on_this_host
from girder_worker_singularity.assembly import make_store
from girder_worker_singularity.errors import (
    ConversionFailed,
    ImageNotAllowed,
    ImageNotFound,
    RegistryRefused,
    RegistryUnreachable,
)
from girder_worker_singularity.settings import SingularitySection
from girder_worker_singularity.sif.note import read_note
from tests.support.images import build_oci_layout
from tests.support.library_server import LibraryServer

IMAGE = "library://team/collection/tool:1"


@pytest.fixture(scope="module")
def sif(tmp_path_factory):
    """A SIF as somebody pushed it to a library."""
    directory = tmp_path_factory.mktemp("library")
    files = {"/run.sh": "#!/bin/sh\necho from the library $*\n"}
    layout = build_oci_layout(directory / "oci", files, entrypoint=["/run.sh"], labels={"kind": "kept"})
    argv = ["apptainer", "--quiet", "build", "--disable-cache", directory / "tool.sif", f"oci:{layout}"]
    subprocess.run(argv, check=True, timeout=120)
    return directory / "tool.sif"


@pytest.fixture
def library(sif):
    with LibraryServer() as server:
        server.images["team/collection/tool:1"] = sif
        yield server


@pytest.fixture(autouse=True)
def nobody_s_configuration(tmp_path, monkeypatch):
    """The user of these tests has no `apptainer remote` of their own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("APPTAINER_CONFIGDIR", raising=False)


def store_of(tmp_path, **settings):
    section = SingularitySection(
        tmp_dir=tmp_path / "build", min_free_bytes=0, schemes=["library"], **settings
    )
    return make_store(section, tmp_path / "sifs", LocalCommandRunner(), SystemClock())


def test_a_sif_of_the_site_s_library_is_fetched_as_it_is_and_runs(tmp_path, library, sif):
    store = store_of(tmp_path, library=library.url)
    made = store.ensure(IMAGE)
    assert made.path.name == "library+team_collection_tool_1.sif"
    assert made.path.read_bytes() == sif.read_bytes()
    assert made.config.labels["kind"] == "kept"
    ran = run_on_this_host(made, ["x"], runner=LocalCommandRunner(), scratch=tmp_path)
    assert ran.stdout == "from the library x\n"
    assert read_note(made.path).source == "library"
    asked = len(library.asked)
    assert store.ensure(IMAGE).path == made.path
    assert len(library.asked) == asked
    assert os.listdir(tmp_path / "build") == []


def test_a_library_that_the_image_names_needs_no_setting(tmp_path, library, sif):
    store = store_of(tmp_path, plain_http_registries=[library.address])
    made = store.ensure(f"library://{library.address}/team/collection/tool:1")
    assert made.path.read_bytes() == sif.read_bytes()


def test_the_user_s_own_remote_is_used_where_the_site_names_no_library(tmp_path, library, sif):
    remote = {"URI": f"//{library.address}", "System": False, "Exclusive": False, "Insecure": True}
    path = tmp_path / ".apptainer/remote.yaml"
    path.parent.mkdir()
    token = "Token: abc"
    path.write_text(
        "Active: mine\nRemotes:\n  mine:\n"
        + "".join(f"    {name}: {str(value).lower()}\n" for name, value in remote.items())
        + f"    {token}\n"
    )
    path.chmod(0o600)
    library.token = "abc"
    assert store_of(tmp_path).ensure(IMAGE).path.read_bytes() == sif.read_bytes()


def test_without_any_library_the_error_says_what_to_set(tmp_path):
    with pytest.raises(ConversionFailed, match=r"has no library.*Set `library` in \[singularity\]"):
        store_of(tmp_path).ensure(IMAGE)


def test_a_library_is_asked_only_if_the_site_allows_it(tmp_path, library):
    section = SingularitySection(library=library.url, min_free_bytes=0)
    store = make_store(section, tmp_path / "sifs", LocalCommandRunner(), SystemClock())
    with pytest.raises(ImageNotAllowed):
        store.ensure(IMAGE)
    assert library.asked == []


def refuse(library):
    library.token = "another"


def fail(library):
    library.fails_with = 503


def cut_off(library):
    library.cuts_after = 100_000


@pytest.mark.parametrize(
    ("break_it", "image", "kind"),
    [
        (None, "library://team/collection/absent:1", ImageNotFound),
        (refuse, IMAGE, RegistryRefused),
        (fail, IMAGE, RegistryUnreachable),
        (cut_off, IMAGE, RegistryUnreachable),
    ],
)
def test_what_goes_wrong_at_a_library_is_named_and_leaves_nothing(tmp_path, library, break_it, image, kind):
    store = store_of(tmp_path, library=library.url)
    if break_it:
        break_it(library)
    with pytest.raises(kind, match=f"The library {library.url} ") as caught:
        store.ensure(image)
    assert caught.value.retryable == (kind is RegistryUnreachable)
    assert os.listdir(tmp_path / "sifs") == [".leases"]
    assert os.listdir(tmp_path / "build") == []


def test_a_library_that_nobody_listens_at_is_worth_another_try(tmp_path, library):
    store = store_of(tmp_path, library="http://127.0.0.1:1")
    with pytest.raises(RegistryUnreachable, match=r"The library http://127.0.0.1:1 could not be reached"):
        store.ensure(IMAGE)
    https = store_of(tmp_path)
    with pytest.raises(RegistryUnreachable, match=library.address):
        https.ensure(f"library://{library.address}/team/collection/tool:1")


def test_a_failed_fetch_leaves_the_sif_in_use_alone(tmp_path, library):
    store = store_of(tmp_path, library=library.url)
    made = store.ensure(IMAGE)
    before = (made.path.read_bytes(), read_note(made.path))
    cut_off(library)
    with pytest.raises(RegistryUnreachable):
        store.ensure(IMAGE, policy="always")
    assert (made.path.read_bytes(), read_note(made.path)) == before
