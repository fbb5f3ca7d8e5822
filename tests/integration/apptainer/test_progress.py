"""Bytes of an image that comes over a slow line, from a real registry by a real Apptainer."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from girder_worker_singularity import ConvertOptions, LocalCommandRunner, SifStore, StoreOptions, SystemClock
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.sif.progress import transfer_in
from girder_worker_singularity.source.credentials import CredentialOptions
from girder_worker_singularity.source.image_sources import SourceOptions
from girder_worker_singularity.source.registry_layers import registry_layers
from tests.integration.apptainer.conftest import HERE
from tests.support.images import build_and_push_image
from tests.support.slow_link import SlowLink

NOISE = os.urandom(11_000_000)
SIZE = 11.5e6
"""Roughly, with busybox; noise cannot be compressed."""
BYTES_PER_SECOND = 3e6


@pytest.fixture(scope="module")
def large(push):
    """The name of an image that takes some seconds, without its registry."""
    return push(files={"/opt/noise": NOISE}).partition("/")[2]


def slow_store(tmp_path, link, **convert):
    registry = f"127.0.0.1:{link.port}"
    options = StoreOptions(
        convert=ConvertOptions(plain_http_registries=(registry,), tmp_dir=tmp_path / "build", **convert),
        minimum_free_bytes=100 * 1024**2,
        rules=ImageRules(schemes=("oras",)),
    )
    return registry, options


def fetch(tmp_path, image, options):
    """What was told of the bytes while the image was fetched."""
    store = SifStore(
        tmp_path / "sifs", LocalCommandRunner(), SystemClock(), options, ask_layers=registry_layers
    )
    lines = []
    sif = store.ensure(image, on_progress=lines.append)
    assert sif.path.exists()
    assert not list((tmp_path / "build").iterdir())
    found = [transfer for line in lines if (transfer := transfer_in(line)) and transfer.doing == "fetching"]
    dones = [transfer.done for transfer in found]
    assert dones == sorted(set(dones))
    return found


def check(found):
    # The registry may have answered after the first look.
    totals = {transfer.total for transfer in found} - {None}
    assert len(totals) == 1, found
    (total,) = totals
    assert SIZE * 0.95 < total < SIZE * 1.1
    assert 0 < found[0].done < found[-1].done <= total


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_over_a_slow_line_is_seen_growing(large, registry, tmp_path, cached):
    with SlowLink(f"http://{registry}", BYTES_PER_SECOND) as link:
        host, options = slow_store(tmp_path, link, cache_dir=tmp_path / "cache" if cached else None)
        check(fetch(tmp_path, f"{host}/{large}", options))


def test_a_registry_that_wants_an_account_tells_it_the_size(locked_registry, tmp_path):
    image = build_and_push_image(
        locked_registry, "team/large:1", {"/opt/noise": NOISE}, credentials="reader:letmein"
    )
    with SlowLink(f"http://{locked_registry}", BYTES_PER_SECOND) as link:
        host, options = slow_store(tmp_path, link)
        accounts = CredentialOptions(username="reader", password="letmein", registry=host)
        options = replace(options, sources=SourceOptions(credentials=accounts))
        check(fetch(tmp_path, f"{host}/{image.partition('/')[2]}", options))


def test_a_finished_sif_over_a_slow_line_is_seen_growing(large, registry, tmp_path):
    store = SifStore(
        tmp_path / "first",
        LocalCommandRunner(),
        SystemClock(),
        StoreOptions(convert=ConvertOptions(plain_http_registries=(registry,)), minimum_free_bytes=0),
    )
    sif = store.ensure(f"{registry}/{large}")
    subprocess.run(
        ["apptainer", "push", "--allow-unsigned", str(sif.path), f"oras://{registry}/{large}-sif"],
        env={**os.environ, "APPTAINER_NOHTTPS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    with SlowLink(f"http://{registry}", BYTES_PER_SECOND) as link:
        host, options = slow_store(tmp_path, link)
        check(fetch(tmp_path, f"oras://{host}/{large}-sif", options))


def test_a_person_at_a_terminal_sees_bytes(large, registry, tmp_path):
    with SlowLink(f"http://{registry}", BYTES_PER_SECOND) as link:
        config = tmp_path / "worker.cfg"
        config.write_text(
            f"[singularity]\nplain_http_registries = 127.0.0.1:{link.port}\ntmp_dir = {tmp_path}/build\n"
            "min_free_bytes = 100000000\n"
        )
        environment = {
            **os.environ,
            "GIRDER_WORKER_SLURM_CONFIG": str(config),
            "SIF_IMAGE_PATH": str(tmp_path / "sifs"),
            "TERM": "xterm",
            "COLUMNS": "150",
        }
        mine, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", "from girder_worker_singularity.cli import main; main()"]
            + ["pull", f"127.0.0.1:{link.port}/{large}"],
            env=environment,
            cwd=HERE.parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        screen = _read(mine)
        assert process.stdout is not None
        assert b"converted" in process.stdout.read()
        assert process.wait(timeout=30) == 0
    seen = [float(done) for done in re.findall(r"fetching (\d+(?:\.\d)?) of 1[123] MB", screen)]
    assert len(set(seen)) >= 2
    assert seen == sorted(seen)


def _read(descriptor: int) -> str:
    data = b""
    try:
        while piece := os.read(descriptor, 65536):
            data += piece
    except OSError:  # the terminal is closed with its last user
        pass
    finally:
        os.close(descriptor)
    return data.decode(errors="replace")
