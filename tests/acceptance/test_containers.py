"""How containers are started by a real worker in real Slurm jobs: resources, writable images, isolation, GPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.girder_site import wait_until
from tests.support.images import build_and_push_image

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Toy</category><title>Look</title><description>Runs a script.</description>
  <version>1.0</version><license>Apache-2.0</license><contributor>Tests</contributor>
  <parameters>
    <label>All</label><description>All</description>
    <string><name>script</name><label>Script</label><description>For sh</description>
      <longflag>script</longflag><default></default></string>
    <integer><name>gpu</name><label>GPUs</label><description>How many</description>
      <longflag>gpu</longflag><default>0</default></integer>
  </parameters>
</executable>
"""
_ENTRY = """#!/bin/sh
case "$*" in
  --list_cli) cat /opt/look/list.json; exit 0 ;;
  "Look --xml") cat /opt/look/Look.xml; exit 0 ;;
esac
while [ $# -gt 0 ]; do
  [ "$1" = --script ] && script=$2
  shift
done
eval "$script"
"""
# The CLI's docker-params go through the stock server: ingest stores them, each run hands them to the task.
_LIST = '{"Look": {"type": "python", "docker-params": %s}}'


def _push(site: Site, docker_params: str = "{}", **image: Any) -> str:
    name = image.pop("name", f"tests/look-{uuid.uuid4().hex[:8]}:1")
    reference = build_and_push_image(
        site.stack["DEVSTACK_REGISTRY"],
        name,
        {"/opt/look/entry.sh": _ENTRY, "/opt/look/list.json": _LIST % docker_params, "/opt/look/Look.xml": _XML,
         "/data/theirs/file": "from the image\n"},
        entrypoint=["/opt/look/entry.sh"],
        workdir="/opt/look",
        **image,
    )  # fmt: skip
    site.girder.ingest(reference)
    return reference


def _run(site: Site, image: str, script: str, **params: Any) -> tuple[str, str]:
    """The log of a job that ran this script, and the job's id."""
    job = site.girder.run(site.girder.cli(image, "Look"), script=script, **params)
    return site.girder.log_at_end(job), job


def test_a_cli_s_docker_params_reach_slurm_and_the_container(site: Site) -> None:
    image = _push(
        site,
        '{"mem_limit": "300m", "nano_cpus": 2000000000, "environment": {"WISH": "a b"}, "tmpfs": {"/cache": ""},'
        ' "hostname": "toy", "privileged": true, "shm_size": "1g"}',
    )
    log, job = _run(
        site,
        image,
        'echo "wish $WISH threads $OMP_NUM_THREADS $NUMEXPR_NUM_THREADS on $(hostname)";'
        " echo x > /cache/x && cat /cache/x; cat /proc/self/mounts | grep -c ' /dev/shm '",
    )
    assert "wish a b threads 2 2 on toy\nx\n1\n" in log
    assert log.count("no counterpart on a cluster: privileged.") == 1
    detail = site.slurm_detail(job)
    assert re.search(r"MinMemoryNode=300M|mem=300M", detail), detail
    assert "CPUs/Task=2" in detail


def test_a_site_s_own_memory_is_never_lowered(site: Site) -> None:
    image = _push(site, '{"mem_limit": "100m"}')
    _, job = _run(site, image, "echo done")
    assert re.search(r"MinMemoryNode=150M|mem=150M", site.slurm_detail(job))


def test_limits_of_docker_may_be_ignored(site: Site) -> None:
    image = _push(site, '{"mem_limit": "300m"}')
    site.worker.restart("[slurm]\ndocker_resources = ignore\n")
    log, job = _run(site, image, "echo done")
    assert re.search(r"MinMemoryNode=150M|mem=150M", site.slurm_detail(job))
    assert "mem_limit or processors" in log


WRITE = (
    "id -u; echo new > /data/theirs/file && cat /data/theirs/file; echo mine > /opt/look/mine && cat /opt/look/mine;"
    " mkdir /new && ls -d /new; df -m / | tail -n 1"
)


def test_an_image_is_read_only_by_default(site: Site) -> None:
    log, _ = _run(site, site_image(site), f"{WRITE}; true")
    assert "mine\n" not in log.replace("look/mine", "")
    assert "Read-only file system" in log


@pytest.mark.parametrize("words", ["writable=tmpfs, fakeroot", "writable=overlay:80, fakeroot"])
def test_an_image_that_may_be_written_is_and_nothing_is_left_of_it(site: Site, words: str) -> None:
    image = site_image(site)
    if "overlay" in words and shutil.which("fuse2fs") is None and os.geteuid() == 0:
        pytest.fail("fuse2fs is not installed")
    site.worker.restart(f"[singularity.images]\n*/tests/look-* = {words}\n")
    for _ in range(2):
        log, job = _run(site, image, WRITE)
        assert "0\nnew\nmine\n/new\n" in log
        if "overlay" in words:
            size = int(re.search(r"\s(\d+)\s+\d+\s+\d+\s+\d+%\s+/$", log, re.MULTILINE)[1])
            assert 60 < size <= 80
    token = _token(site, job)
    wait_until("it is removed", lambda: not list((site.worker.root / "run" / token).glob("scratch/overlay*")))


def site_image(site: Site) -> str:
    """One image for the tests that need nothing special of it."""
    if not hasattr(site, "look"):
        site.look = _push(site)  # type: ignore[attr-defined]
    return str(site.look)  # type: ignore[attr-defined]


def _token(site: Site, job: str) -> str:
    return next(entry["token"] for entry in site.worker.entries_of(job) if entry["event"] == "attempt")


def test_a_container_sees_nothing_of_the_node_but_what_it_was_given(site: Site) -> None:
    # The node's are under /proc/1 for root only: the test compares with this process, which runs on the same host.
    script = (
        "for n in pid ipc mnt; do ls -l /proc/self/ns/$n | sed 's/.*-> //'; done; echo processes $(ls /proc | grep -c '^[0-9]');"
        "ls -A ~ | wc -l; ls -A /tmp | wc -l; ls -A /dev/shm | wc -l; env | grep -c SLURM; ls /home"
    )
    marker = Path("/dev/shm") / f"marker-{uuid.uuid4().hex}"  # noqa: S108
    marker.touch()
    try:
        log, _ = _run(site, site_image(site), script)
    finally:
        marker.unlink()
    for kind in ("pid", "ipc", "mnt"):
        (theirs,) = re.findall(rf"{kind}:\[\d+\]", log)
        assert theirs != str(Path(f"/proc/self/ns/{kind}").readlink())
    assert int(re.search(r"processes (\d+)", log)[1]) < 12
    assert re.search(r"processes \d+\n0\n0\n0\n0\n", log), log


def test_an_image_may_have_no_network(site: Site) -> None:
    image = site_image(site)
    script = "grep -c : /proc/net/dev"
    assert "\n1\n" not in _run(site, image, script)[0]
    site.worker.restart("[singularity.images]\n*/tests/look-* = net=none\n")
    assert "\n1\n" in f"\n{_run(site, image, script)[0]}"


def test_threads_are_those_of_the_allocation_unless_the_image_says_otherwise(site: Site) -> None:
    script = 'echo "threads $OMP_NUM_THREADS $MKL_NUM_THREADS $ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"'
    image = _push(site, env={"OMP_NUM_THREADS": "7"})
    site.worker.restart("[slurm.options]\nmem = 150\ncpus-per-task = 3\n")
    assert "threads 7 3 3\n" in _run(site, image, script)[0]


def test_a_daemon_of_the_entrypoint_does_not_outlive_the_job(site: Site) -> None:
    marker = f"{900000 + os.getpid()}"
    # Its parent ends first, and it does not belong to the session: only the end of its PID namespace reaches it.
    script = f"(setsid sleep {marker} </dev/null >/dev/null 2>&1 &); sleep 1; ps -o args | grep -c '^sleep {marker}'; echo ends"
    log, _ = _run(site, site_image(site), script)
    assert "\n1\nends" in f"\n{log}"

    def alive() -> list[str]:
        out = subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True, text=True)
        return out.stdout.split()

    wait_until("the daemon is gone", lambda: not alive(), seconds=10)


GPU = 'echo "gpus=$SLURM_JOB_GPUS visible=$CUDA_VISIBLE_DEVICES"'


def test_an_image_with_the_label_gets_a_gpu_of_slurm(site: Site) -> None:
    image = _push(site, labels={"com.nvidia.volumes.needed": "nvidia_driver"})
    log, job = _run(site, image, GPU)
    assert re.search(r"gpus=\d visible=\d\n", log), log
    assert "TresPerNode=gres:gpu:1" in site.slurm_detail(job)
    # There is no driver here; Apptainer's warning about that would not help anybody.
    assert "nv" not in log.lower()


@pytest.mark.parametrize(("gpu", "gres"), [(2, "gres:gpu:2"), (0, ""), (-1, "")])
def test_a_cli_s_argument_gpu_asks_for_so_many(site: Site, gpu: int, gres: str) -> None:
    log, job = _run(site, site_image(site), GPU, gpu=gpu)
    assert (f"TresPerNode={gres}" if gres else "gpus= visible=") in (site.slurm_detail(job) if gres else log)
    assert ("visible=0,1\n" if gpu == 2 else "visible=\n") in log


def test_docker_s_device_requests_and_the_site_s_gpu_options(site: Site) -> None:
    image = _push(site, '{"device_requests": [{"count": 1, "capabilities": [["gpu"]]}]}')
    site.worker.restart("[slurm.gpu_options]\ngres = gpu:fake:{gpus}\ncomment = for-gpus\nmem = 170\n")
    log, job = _run(site, image, GPU)
    detail = site.slurm_detail(job)
    assert re.search(r"visible=\d\n", log)
    assert "gres:gpu:fake:1" in detail
    assert "Comment=for-gpus" in detail
    assert re.search(r"MinMemoryNode=170M|mem=170M", detail)


def test_where_there_are_no_gpus_none_is_asked_for(site: Site) -> None:
    image = _push(site, labels={"com.nvidia.volumes.needed": "nvidia_driver"})
    site.worker.restart("[singularity]\ngpu_kind = none\n")
    log, job = _run(site, image, GPU)
    assert "gpus= visible=\n" in log
    assert "gres:gpu" not in site.slurm_detail(job)
