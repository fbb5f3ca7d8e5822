"""Images from real registries: once, whole, and with the right error when it does not work."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from girder_worker_singularity import (
    ConvertOptions,
    LocalCommandRunner,
    SystemClock,
    list_clis,
    read_sif,
    run_on_this_host,
)
from girder_worker_singularity.errors import (
    CliContractViolated,
    ConversionStopped,
    ImageNotFound,
    NotEnoughSpace,
    RegistryRefused,
    RegistryUnreachable,
    SifDamaged,
    StoreNotWritable,
)
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.source.credentials import Credentials
from girder_worker_singularity.source.registry_connection import RegistryAccess
from girder_worker_singularity.source.registry_digest import registry_digest
from tests.integration.apptainer.conftest import make_store
from tests.support.images import build_and_push_image

REPOSITORY = Path(__file__).parents[3]
CLI = """#!/bin/sh
echo "starting a daemon" >&2
case "$*" in
  --list_cli) echo 'Welcome!'; echo '{"Blur": {"type": "python"}, "Cut": {"desc-type": "json"}}';;
  "Blur --xml") echo noise; echo '<?xml version="1.0"?><executable><title>é</title></executable>';;
  "Cut --json") echo '{"title": "Cut"}';;
  *) echo "what?" >&2; exit 3;;
esac
"""
ENSURE = """
import sys
from pathlib import Path
from tests.integration.apptainer.conftest import make_store
root, build, registry, image = sys.argv[1:]
store = make_store(Path(root), registry, tmp_dir=Path(build))
print("ready", flush=True)
sys.stdin.readline()
sif = store.ensure(image, on_progress=lambda line: print("progress", line, flush=True))
print("converted" if sif.converted else "found", sif.path, flush=True)
"""


def big_image(push, megabytes=120):
    """An image that takes a few seconds, so that something can happen meanwhile."""
    # Always the same, so that a registry keeps it once.
    noise = random.Random(megabytes).randbytes(megabytes * 1024**2)  # noqa: S311
    return push(files={"/data/noise": noise, "/run.sh": "#!/bin/sh\necho ran\n"}, entrypoint=["/run.sh"])


class Worker:
    """Another process that wants an image."""

    def __init__(self, store, registry, image):
        build = store._options.convert.tmp_dir
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENSURE, str(store.root), str(build), registry, image],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_for_line(self, word):
        for line in self.process.stdout:
            if word in line:
                return line
        raise AssertionError(f"the other process ended without saying {word!r}")

    def outcome(self):
        line = self.wait_for_line("/")
        while not line.startswith(("converted", "found")):
            line = self.wait_for_line("/")
        assert self.process.wait(60) == 0
        return line.split()[0]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_converted_image_keeps_what_the_image_says(show, show_image):
    assert show.config.entrypoint == ("./show.sh", "one two")
    assert show.config.command == ("from", "the image")
    assert show.config.working_dir == "/opt/my app"
    assert show.config.labels["note"] == "y z"
    assert show.digest.startswith("sha256:")
    assert show.path.name == show_image.replace("/", "_").replace(":", "_") + ".sif"


def test_finding_a_sif_takes_less_than_20_ms(session_store, show_image):
    session_store.ensure(show_image)
    started = time.perf_counter()
    for _ in range(100):
        assert session_store.find(show_image) is not None
    assert (time.perf_counter() - started) / 100 < 0.020


def test_zstd_is_what_the_sif_is_compressed_with(show):
    listing = subprocess.run(
        ["apptainer", "sif", "list", str(show.path)], capture_output=True, text=True, check=True
    )
    assert "Squashfs" in listing.stdout
    with show.path.open("rb") as file:
        content = file.read()
    superblock = content.index(b"hsqs")
    assert int.from_bytes(content[superblock + 20 : superblock + 22], "little") == 6


def test_four_processes_and_many_threads_convert_one_image_once(store, registry, push):
    image = big_image(push, 40)
    workers = [Worker(store, registry, image) for _ in range(4)]
    for worker in workers:
        worker.go()
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.ensure(image))) for _ in range(10)]
    for thread in threads:
        thread.start()
    outcomes = [worker.outcome() for worker in workers]
    for thread in threads:
        thread.join()
    made_here = any(sif.converted for sif in found)
    assert outcomes.count("converted") + made_here == 1
    assert len(found) == 10
    assert names(store.root) == [".leases", found[0].path.name, f"{found[0].path.name}.json"]
    assert names(store.root / ".leases") == []


@pytest.mark.parametrize("moment", ["Fetching OCI image", "Creating SIF file"])
def test_a_killed_converter_is_followed_by_another_at_once(store, registry, push, moment):
    image = big_image(push)
    worker = Worker(store, registry, image)
    worker.go()
    worker.wait_for_line(moment)
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()
    assert names(store.root / ".leases") != []
    started = time.monotonic()
    sif = store.ensure(image)
    assert sif.converted
    assert time.monotonic() - started < 50  # not the minute that a holder elsewhere would be given
    assert run_on_this_host(sif, [], runner=LocalCommandRunner(), scratch=store.root).stdout == "ran\n"
    time.sleep(2)  # what an orphan of the killed converter would still write
    left = [name for name in names(store.root) if name.startswith(".tmp")]
    assert left == []
    assert names(store._options.convert.tmp_dir) == []
    assert subprocess.run(["pgrep", "-f", str(store.root)], capture_output=True, check=False).returncode == 1


def test_a_conversion_can_be_stopped_and_leaves_nothing(store, push):
    image = big_image(push)
    lines = []
    with pytest.raises(ConversionStopped):
        store.ensure(
            image, on_progress=lines.append, should_stop=lambda: any("Creating" in line for line in lines)
        )
    assert names(store.root) == [".leases"]
    assert names(store._options.convert.tmp_dir) == []


def test_a_sif_that_was_cut_off_is_found_out_and_made_again(store, show_image):
    sif = store.ensure(show_image)
    os.truncate(sif.path, sif.path.stat().st_size - 4096)
    with pytest.raises(SifDamaged):
        read_sif(sif.path)
    with pytest.raises(SifDamaged):
        store.find(show_image)
    again = store.ensure(show_image)
    assert again.converted
    assert read_sif(again.path).oci_config is not None


def flip(path, offset):
    """One byte is another, written a while after the SIF was made."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 255]))
    os.utime(path, (path.stat().st_mtime + 5, path.stat().st_mtime + 5))


def squashfs(path):
    return path.read_bytes().index(b"hsqs")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: flip(path, 32),  # the word that makes it a SIF
        lambda path: flip(path, 4096 + 20),  # where the first object lies
        lambda path: flip(path, squashfs(path)),
        lambda path: flip(path, squashfs(path) + 64),  # where the file system's inodes lie
        lambda path: flip(path, (squashfs(path) + path.stat().st_size) // 2),
        lambda path: flip(path, path.stat().st_size - 1),
    ],
    ids=["empty", "header", "half", "magic", "table", "superblock", "inodes", "data", "end"],
)
def test_a_damaged_sif_is_found_before_anything_runs_from_it_and_made_anew(damaged_store, damage):
    store, image = damaged_store
    path = store.ensure(image).path
    damage(path)
    with pytest.raises(SifDamaged):
        store.find(image)
    assert store.find_for(image, "if-not-present") is None
    with pytest.raises(SifDamaged):
        store.ensure(image, policy="never")
    again = store.ensure(image)
    assert again.converted
    assert run_on_this_host(again, [], runner=LocalCommandRunner(), scratch=store.root).stdout == "ran\n"


@pytest.fixture(scope="module")
def damaged_store(registry, push, tmp_path_factory):
    """A store whose image is made again and again."""
    image = push(files={"/run.sh": "#!/bin/sh\necho ran\n"}, entrypoint=["/run.sh"])
    return make_store(tmp_path_factory.mktemp("damaged"), registry), image


def test_always_follows_the_tag_and_keeps_what_did_not_change(store, push):
    name = f"apptainer-tests/moving-{time.time_ns()}"
    image = push("1", name=name, files={"/run.sh": "#!/bin/sh\necho one\n"}, entrypoint=["/run.sh"])
    first = store.ensure(image)
    assert not store.ensure(image, policy="always").converted
    push("1", name=name, files={"/run.sh": "#!/bin/sh\necho two\n"}, entrypoint=["/run.sh"])
    assert not store.ensure(image).converted
    second = store.ensure(image, policy="always")
    assert second.converted
    assert second.digest != first.digest
    assert run_on_this_host(second, [], runner=LocalCommandRunner(), scratch=store.root).stdout == "two\n"
    by_digest = store.ensure(f"{image.rpartition(':')[0]}@{first.digest}")
    assert by_digest.path != second.path
    assert run_on_this_host(by_digest, [], runner=LocalCommandRunner(), scratch=store.root).stdout == "one\n"


def test_a_digest_of_a_tag_in_the_store_needs_no_second_conversion(session_store, show, show_image):
    found = session_store.ensure(f"{show_image.rpartition(':')[0]}@{show.digest}")
    assert found.path == show.path


def test_an_unknown_image_is_named(store, registry, show_image):
    with pytest.raises(ImageNotFound, match="no-such-tag"):
        store.ensure(show_image.rpartition(":")[0] + ":no-such-tag")
    with pytest.raises(ImageNotFound):
        store.ensure(f"{registry}/apptainer-tests/nothing:1")
    assert names(store.root) == [".leases"]


def test_nobody_at_the_address_is_worth_another_try(tmp_path):
    with pytest.raises(RegistryUnreachable) as caught:
        make_store(tmp_path, "127.0.0.1:1").ensure("127.0.0.1:1/a/b:1")
    assert caught.value.retryable


def test_a_locked_registry_refuses_and_opens_to_credentials(locked_registry, tmp_path):
    image = build_and_push_image(locked_registry, "private/tool:1", {"/x": "y"}, credentials="reader:letmein")
    with pytest.raises(RegistryRefused) as caught:
        make_store(tmp_path / "a", locked_registry).ensure(image)
    assert not caught.value.retryable
    account = {"APPTAINER_DOCKER_USERNAME": "reader", "APPTAINER_DOCKER_PASSWORD": "wrong"}
    with pytest.raises(RegistryRefused):
        make_store(tmp_path / "b", locked_registry, **account).ensure(image)
    account |= {"APPTAINER_DOCKER_PASSWORD": "letmein"}
    opened = make_store(tmp_path / "c", locked_registry, **account).ensure(image)
    assert opened.converted
    assert opened.digest is not None


def test_a_locked_registry_opens_to_a_credentials_file(locked_registry, tmp_path):
    image = build_and_push_image(locked_registry, "private/tool:2", {"/x": "y"}, credentials="reader:letmein")
    authfile = tmp_path / "auth.json"
    authfile.write_text(json.dumps({"auths": {locked_registry: {"auth": "cmVhZGVyOmxldG1laW4="}}}))
    options = ConvertOptions(plain_http_registries=(locked_registry,), authfile=authfile)
    store = SifStore(
        tmp_path / "s", LocalCommandRunner(), SystemClock(), StoreOptions(options, minimum_free_bytes=0)
    )
    assert store.ensure(image).converted
    reference = parse_image_reference(image)
    access = RegistryAccess((locked_registry,))
    assert registry_digest(reference, access) is None
    me = Credentials("reader", "letmein")
    assert registry_digest(reference, replace(access, credentials=me)) is not None


def test_a_store_without_write_permission_is_named_before_anything_is_pulled(registry, tmp_path, show_image):
    for root in (tmp_path / "never used", tmp_path / "used before"):
        root.mkdir()
        if root.name == "used before":
            (root / ".leases").mkdir()
        root.chmod(0o500)
        lines = []
        with pytest.raises(StoreNotWritable, match=str(root)):
            make_store(root, registry).ensure(show_image, on_progress=lines.append)
        assert lines == []


def test_a_store_that_can_only_be_read_still_serves(registry, tmp_path, show, show_image):
    root = tmp_path / "sifs"
    root.mkdir()
    shutil.copy(show.path, root)
    root.chmod(0o500)
    assert make_store(root, registry).ensure(show_image).path.parent == root


def test_a_full_disk_is_seen_before_anything_is_pulled(tmp_path, show_image):
    options = StoreOptions(minimum_free_bytes=10**18)
    with pytest.raises(NotEnoughSpace):
        SifStore(tmp_path, LocalCommandRunner(), SystemClock(), options).ensure(show_image)


def test_an_image_lists_and_describes_its_clis(store, push, tmp_path):
    image = push(files={"/opt/cli/run": CLI}, entrypoint=["./run"], workdir="/opt/cli")
    sif = store.ensure(image)

    def run(arguments):
        return run_on_this_host(sif, arguments, runner=LocalCommandRunner(), scratch=tmp_path)

    blur, cut = list_clis(sif, run)
    assert (blur.name, blur.cli_type, blur.desc_type) == ("Blur", "python", "xml")
    assert blur.description == '<?xml version="1.0"?><executable><title>é</title></executable>'
    assert (cut.name, cut.desc_type, cut.description) == ("Cut", "json", '{"title": "Cut"}')


def test_an_image_without_clis_says_why(show, tmp_path):
    with pytest.raises(CliContractViolated, match="not JSON"):
        list_clis(
            show,
            lambda arguments: run_on_this_host(
                show, arguments, runner=LocalCommandRunner(), scratch=tmp_path
            ),
        )
