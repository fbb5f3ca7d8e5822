"""Real processes that convert, use and prune the SIFs of one store at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from girder_worker_singularity.sif.inventory import inventory
from tests.support.images import build_oci_layout

REPOSITORY = Path(__file__).parents[3]


def test_two_that_prune_never_take_a_sif_from_its_users_nor_from_who_makes_it(tmp_path):
    root, archives = tmp_path / "sifs", tmp_path / "archives"
    root.mkdir()
    images = [f"team/tool{number}:1" for number in range(3)]
    for image in images:
        name = image.replace("/", "_").replace(":", "_")
        build_oci_layout(archives / name, {"/run.sh": "#!/bin/sh\n"}, entrypoint=["/run.sh"], applets=False)
    until = time.time() + 8
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_crowd", role, root, archives, str(until), *images],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=dict(os.environ),
        )
        for role in ("maker", "user", "user", "user", "pruner", "pruner")
    ]  # fmt: skip
    said: dict[str, int] = {}
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        for name, number in json.loads(out).items():
            said[name] = said.get(name, 0) + number
    left = inventory(root)
    assert said["rounds"] > 100
    assert said["taken"] > 10
    assert said["removed"] > 3
    assert said["made"] == said["removed"] + len(left)
    assert not [sif for sif in left if sif.damage]
    assert len(list(root.glob(".old-*.sif"))) == said["removed"]
    assert list(root.glob(".tmp-*")) == []
    assert list((root / ".leases").iterdir()) == []
