"""SIFs as other programs than Apptainer write them, made by SingularityCE's own library (`siftool`) and run for real.

SingularityCE itself is in no package source of the machines that these tests are for. What it and older versions write
differs in which objects a SIF has, in their order, and where the data begin.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess

import pytest

from girder_worker_singularity import LocalCommandRunner, SifStore, StoreOptions, SystemClock, read_sif
from girder_worker_singularity import run_on_this_host as run
from girder_worker_singularity.errors import SifUnsupported

IMAGE = "team/tool:1"
DEFINITION, PARTITION, JSON, GENERIC = 1, 4, 6, 7
OCI_ROOT_INDEX, OCI_BLOB = 0x400A, 0x400B
ARCHITECTURES = {"x86_64": 2, "aarch64": 4, "ppc64le": 6, "s390x": 11}
CONFIG = {
    "Entrypoint": ["./show.sh", "one two"],
    "Cmd": ["from", "the image"],
    "Env": ["PATH=/usr/bin:/bin", "PLAIN=plain"],
    "WorkingDir": "/opt/my app",
    "Labels": {"note": "y z"},
}
METADATA = {
    "data": {"attributes": {"labels": {"org.label-schema.usage.singularity.version": "4.1.2"}}},
    "type": "container",
}
DOCKER = "bootstrap: docker\nfrom: team/tool:1\n"


@pytest.fixture(scope="module")
def siftool():
    program = shutil.which("siftool")
    if program is None:
        pytest.skip("there is no siftool")
    return program


@pytest.fixture(scope="module")
def file_system(show, tmp_path_factory):
    """The squashfs of a real image."""
    path = tmp_path_factory.mktemp("squashfs") / "root.squashfs"
    listed = subprocess.run(
        ["apptainer", "sif", "list", show.path], capture_output=True, text=True, check=True
    )
    number = next(line.split("|")[0] for line in listed.stdout.splitlines() if "Squashfs" in line)
    with path.open("wb") as file:
        subprocess.run(["apptainer", "sif", "dump", number.strip(), show.path], stdout=file, check=True)
    return path


@pytest.fixture
def written(siftool, file_system, tmp_path):
    """Writes a SIF of these objects into a store, under the image's name."""

    def write(*objects):
        root = tmp_path / "sifs"
        root.mkdir()
        sif = root / "team_tool_1.sif"
        subprocess.run([siftool, "new", sif], check=True, timeout=30)
        for number, (kind, name, content) in enumerate(objects):
            argv = [siftool, "add", "--datatype", str(kind), "--groupid", "1"]
            if kind == PARTITION:
                architecture = str(ARCHITECTURES[platform.machine()])
                argv += ["--parttype", "2", "--partfs", "1", "--partarch", architecture, sif, file_system]
            else:
                source = tmp_path / f"object{number}"
                source.write_text(content)
                argv += ["--filename", name, sif, source]
            subprocess.run(argv, check=True, timeout=30)
        store = SifStore(root, LocalCommandRunner(), SystemClock(), StoreOptions(minimum_free_bytes=0))
        return store, sif

    return write


def config():
    return (JSON, "oci-config.json", json.dumps(CONFIG))


def metadata():
    return (JSON, "inspect-metadata.json", json.dumps(METADATA))


@pytest.mark.parametrize(
    "objects",
    [
        [(DEFINITION, "Def.FILE", DOCKER), metadata(), config(), (PARTITION, "", "")],
        [(DEFINITION, "Def.FILE", DOCKER), config(), (PARTITION, "", "")],
        [(PARTITION, "", ""), config(), metadata(), (DEFINITION, "Def.FILE", DOCKER)],
        [(GENERIC, "note", "x"), (DEFINITION, "Def.FILE", DOCKER), config(), (PARTITION, "", "")],
    ],
    ids=["SingularityCE", "Singularity 3.5", "another order", "something else first"],
)
def test_a_sif_of_another_writer_is_read_and_runs_as_its_image_wants(written, tmp_path, objects):
    store, path = written(*objects)
    sif = store.ensure(IMAGE, policy="never")
    assert sif.path == path
    assert sif.config.entrypoint == ("./show.sh", "one two")
    assert sif.config.labels["note"] == "y z"
    assert read_sif(path).architecture in ("amd64", "arm64", "ppc64le", "s390x")
    shown = run(sif, [], runner=LocalCommandRunner(), scratch=tmp_path).stdout
    assert shown == "<one two>\n<from>\n<the image>\n"


def test_one_of_a_definition_with_its_own_runscript_or_of_a_directory_is_started_by_its_runscript(
    written, tmp_path
):
    definition = "Bootstrap: docker\nFrom: team/tool:1\n\n%runscript\n    echo own\n"
    store, path = written((DEFINITION, "Def.FILE", definition), metadata(), config(), (PARTITION, "", ""))
    assert store.ensure(IMAGE, policy="never").config.entrypoint is None
    assert read_sif(path).overrides_runscript


def test_one_made_of_a_directory_is_started_by_the_runscript_in_it(written, tmp_path):
    store, _ = written(
        (DEFINITION, "Def.FILE", "bootstrap: sandbox\nfrom: box\n"), metadata(), (PARTITION, "", "")
    )
    sif = store.ensure(IMAGE, policy="never")
    assert sif.config.entrypoint is None
    # Its own script does not know the image's working directory.
    script = run(sif, ["x"], runner=LocalCommandRunner(), scratch=tmp_path)
    assert "show.sh" in script.stderr


def as_oci_sif(path):
    """Its objects are an index and blobs, as `singularity build --oci` writes them."""
    content = bytearray(path.read_bytes())
    for number, kind in enumerate((OCI_BLOB, OCI_BLOB, OCI_BLOB, OCI_ROOT_INDEX)):
        content[4096 + number * 585 : 4100 + number * 585] = kind.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("policy", ["never", "if-not-present", "always", "if-newer"])
def test_an_oci_sif_is_named_with_what_to_do_and_is_left_where_it_is(written, policy):
    store, path = written(*[(GENERIC, f"sha256-{number}", "{}") for number in range(4)])
    as_oci_sif(path)
    before = path.read_bytes()
    with pytest.raises(SifUnsupported, match=r"OCI-SIF of SingularityCE.*without `--oci`"):
        store.ensure(IMAGE, policy=policy)
    assert store.find_for(IMAGE, "if-not-present") is None
    assert path.read_bytes() == before
    refused = subprocess.run(["apptainer", "exec", path, "true"], capture_output=True, text=True)
    assert refused.returncode != 0  # or else it need not be refused here
