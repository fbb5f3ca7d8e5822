"""What a container may write, and what it sees of its host, looked at from inside."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from girder_worker_singularity import (
    ContainerSpec,
    LocalCommandRunner,
    Mount,
    container_argv,
    environment_file_text,
    read_sif,
)
from girder_worker_singularity.image.config import image_config
from girder_worker_singularity.run.container import overlay_argv

RUNNER = LocalCommandRunner()
WRITE = "echo changed > /data/theirs/file && cat /data/theirs/file && echo new > /data/theirs/new && mkdir /top && ls -d /top"


@pytest.fixture(scope="session")
def sif(push, session_store):
    """An image with a directory that belongs to root."""
    return session_store.ensure(push(files={"/data/theirs/file": "theirs\n"}, env={"NAMED": "by the image"}))


def run(sif, script, *, env=None, **changes):
    spec = ContainerSpec(sif=str(sif.path), image=sif.config, entrypoint=("/bin/sh",), **changes)
    return RUNNER.run(container_argv(spec, arguments=["-c", script]), timeout_seconds=120, env=env)


def overlay(directory, size_mib, *, fakeroot):
    path = directory / "with, a comma.img"
    made = RUNNER.run(overlay_argv(str(path), size_mib, fakeroot=fakeroot), timeout_seconds=60)
    assert made.returncode == 0, made.stderr
    return path


def test_an_overlay_takes_what_root_writes_anywhere_and_leaves_the_image_alone(sif, tmp_path):
    path = overlay(tmp_path, 80, fakeroot=True)
    result = run(sif, WRITE, overlay=str(path), fakeroot=True)
    assert (result.returncode, result.stdout) == (0, "changed\n/top\n"), result.stderr
    assert run(sif, "cat /data/theirs/file; ls /").stdout.startswith("theirs\n")
    assert run(sif, "cat /data/theirs/new", overlay=str(path), fakeroot=True).stdout == "new\n"


def test_an_overlay_is_as_large_as_it_was_asked_for_but_takes_no_room_before(sif, tmp_path):
    path = overlay(tmp_path, 80, fakeroot=True)
    assert path.stat().st_size == 80 * 1024**2
    assert path.stat().st_blocks * 512 < 20 * 1024**2
    script = "head -c 40000000 /dev/zero > /fits && echo fits; dd if=/dev/zero of=/too-much bs=1M count=90 2>&1 || echo full"
    said = run(sif, script, overlay=str(path), fakeroot=True).stdout.splitlines()
    assert (said[0], said[-1]) == ("fits", "full")


def test_as_an_ordinary_user_a_directory_of_root_stays_closed_even_with_an_overlay(sif, tmp_path):
    path = overlay(tmp_path, 80, fakeroot=False)
    result = run(sif, "mkdir /mine && echo made; echo x > /data/theirs/file", overlay=str(path))
    assert result.stdout == "made\n"
    assert "Permission denied" in result.stderr


def test_a_tmpfs_takes_what_root_writes_anywhere_and_forgets_it(sif):
    assert run(sif, WRITE, writable_tmpfs=True, fakeroot=True).stdout == "changed\n/top\n"
    assert run(sif, "cat /data/theirs/file", writable_tmpfs=True, fakeroot=True).stdout == "theirs\n"


def test_scratch_mounts_are_empty_writable_and_in_the_scratch_directory(sif, tmp_path):
    scratch = tmp_path / "scratch, of a job"
    scratch.mkdir()
    script = 'ls -A "/data/theirs" "/not, there"; echo x > /data/theirs/made && echo y > "/not, there/made" && echo wrote'
    result = run(sif, script, scratch=str(scratch), scratch_mounts=("/data/theirs", "/not, there"))
    assert result.stdout.endswith("wrote\n"), result.stderr
    assert "file" not in result.stdout
    assert len(list(scratch.rglob("made"))) == 2


@pytest.mark.parametrize("changes", [{}, {"fakeroot": True}, {"gpu": "nv"}, {"network_none": True}], ids=str)
def test_processes_shared_memory_and_files_of_the_host_are_not_seen(sif, changes):
    marker = f"marker-{uuid.uuid4().hex}"
    places = [Path("/dev/shm") / marker, Path("/var/tmp") / marker, Path("/tmp") / marker]  # noqa: S108
    script = (
        f"ls -d /dev/shm/{marker} /tmp/{marker} /var/tmp/{marker} {Path.home()}/.. 2>/dev/null;"
        "for kind in pid ipc mnt; do ls -l /proc/self/ns/$kind | sed 's/.*-> //'; done; echo x > /dev/shm/mine && echo wrote"
    )
    for place in places:
        place.touch()
    try:
        said = run(sif, script, **changes).stdout.split()
    finally:
        for place in places:
            place.unlink()
    assert not any(marker in word for word in said)
    for kind in ("pid", "ipc", "mnt"):
        (theirs,) = [word for word in said if word.startswith(f"{kind}:")]
        assert theirs != str(Path(f"/proc/self/ns/{kind}").readlink())
    assert said[-1] == "wrote"
    assert not Path("/dev/shm/mine").exists()  # noqa: S108


def test_a_read_only_mount_cannot_be_written_not_even_as_root(sif, tmp_path):
    (tmp_path / "input").write_text("content")
    script = "cat /in/input; echo x > /in/input || echo refused; rm /in/input || echo refused"
    for fakeroot in (False, True):
        result = run(sif, script, fakeroot=fakeroot, mounts=(Mount(str(tmp_path), "/in", read_only=True),))
        assert result.stdout == "contentrefused\nrefused\n"


def test_only_the_loopback_is_left_where_there_is_no_network(sif):
    assert run(sif, "ip -o link | cut -d: -f2", network_none=True).stdout.split() == ["lo"]
    assert run(sif, "grep -c : /proc/net/dev", network_none=True).stdout == "1\n"


def test_the_variables_of_the_allocation_come_by_the_environment_file_alone(sif, tmp_path):
    """The node's CUDA_VISIBLE_DEVICES does not get in with --nv: without the file a job would use any GPU."""
    file = tmp_path / "environment"
    file.write_text(f"{environment_file_text({'GIVEN': 'x'})}CUDA_VISIBLE_DEVICES=1,GPU-1a/b:c\nNAMED=7\n")
    node = {**os.environ, "CUDA_VISIBLE_DEVICES": "5"}
    script = 'echo "$GIVEN $CUDA_VISIBLE_DEVICES $NAMED"'
    assert run(sif, script, gpu="nv", env=node).stdout == "  by the image\n"
    assert run(sif, script, gpu="nv", env=node, environment_file=str(file)).stdout == "x 1,GPU-1a/b:c 7\n"


@pytest.mark.parametrize("gpu", ["nv", "rocm"])
def test_without_a_driver_a_gpu_option_says_nothing(sif, gpu):
    result = run(sif, "echo runs", gpu=gpu)
    assert (result.stdout, result.stderr) == ("runs\n", "")


def test_a_sif_made_from_a_directory_has_no_oci_configuration_and_runs_what_it_is_told(tmp_path):
    sandbox, path = tmp_path / "sandbox", tmp_path / "made.sif"
    for directory in ("bin", "dev", "proc", "sys", "tmp", "etc", "root"):
        (sandbox / directory).mkdir(parents=True)
    (sandbox / "bin/sh").write_bytes(Path("/bin/busybox").read_bytes())
    (sandbox / "bin/sh").chmod(0o755)
    subprocess.run(
        ["apptainer", "build", "--disable-cache", str(path), str(sandbox)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    contents = read_sif(path)
    assert contents.oci_config is None
    spec = ContainerSpec(
        sif=str(path), image=image_config(None, contents.labels), entrypoint=("/bin/sh", "-c")
    )
    result = RUNNER.run(container_argv(spec, arguments=["pwd; echo runs"]), timeout_seconds=60)
    assert result.stdout == "/\nruns\n"
