"""Docker's run options, translated."""

from __future__ import annotations

import docker.types
import pytest

from girder_worker_singularity.errors import DockerOptionInvalid, MountInvalid
from girder_worker_singularity.run.docker_options import DockerOptions, ResourceWishes, docker_options
from girder_worker_singularity.run.mounts import Mount


def test_no_options_ask_for_nothing():
    assert docker_options({}) == DockerOptions()


@pytest.mark.parametrize(
    ("limit", "mib"),
    [
        ("512m", 512), ("2g", 2048), ("2GB", 2048), ("1.5g", 1536), (1073741824, 1024), ("1073741825", 1025), ("1k", 1),
        ("1GiB", 1024), (0, 0), (-1, 0), (None, 0), ("0", 0), ("1t", 1024 * 1024), (1.0, 1),
    ],
)  # fmt: skip
def test_a_memory_limit_is_a_wish_in_whole_mib(limit, mib):
    assert docker_options({"mem_limit": limit}).wishes == ResourceWishes(memory_mib=mib)


@pytest.mark.parametrize(
    ("options", "cpus"),
    [
        ({"nano_cpus": 4_000_000_000}, 4),
        ({"nano_cpus": 1_500_000_000}, 2),
        ({"cpu_count": 3}, 3),
        ({"cpuset_cpus": "0-3,6"}, 5),
        ({"cpuset_cpus": "1,1"}, 1),
        ({"cpu_quota": 250_000}, 3),
        ({"cpu_quota": 100_000, "cpu_period": 50_000}, 2),
        ({"cpu_quota": -1}, 0),
        ({"nano_cpus": 1_000_000_000, "cpu_count": 2}, 2),
        ({"nano_cpus": 0}, 0),
    ],
)
def test_limits_of_processors_are_a_wish_for_whole_ones(options, cpus):
    assert docker_options(options).wishes == ResourceWishes(cpus=cpus)


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({"device_requests": [docker.types.DeviceRequest(count=2, capabilities=[["gpu"]])]}, 2),
        ({"device_requests": [docker.types.DeviceRequest(count=-1, capabilities=[["gpu", "utility"]])]}, 1),
        ({"device_requests": [docker.types.DeviceRequest(device_ids=["0", "3"], capabilities=[["gpu"]])]}, 2),
        ({"device_requests": [docker.types.DeviceRequest(driver="nvidia", count=1)]}, 1),
        ({"device_requests": [docker.types.DeviceRequest(count=1, capabilities=[["tpu"]])]}, 0),
        ({"device_requests": [{"count": 3, "capabilities": [["gpu"]]}]}, 3),
        ({"device_requests": [{"device_ids": ["a"], "capabilities": [["gpu"]]}]}, 1),
        ({"runtime": "nvidia"}, 1),
        (
            {
                "devices": [
                    "/dev/nvidia0:/dev/nvidia0:rwm",
                    "/dev/nvidia1",
                    "/dev/nvidiactl",
                    "/dev/nvidia-uvm",
                ]
            },
            2,
        ),
        ({"device_requests": []}, 0),
        ({"device_requests": None}, 0),
    ],
)
def test_gpus_are_counted_and_all_of_them_are_one(options, gpus):
    translated = docker_options(options)
    assert translated.wishes == ResourceWishes(gpus=gpus)
    assert translated.mounts == ()
    assert translated.ignored == ()


def test_devices_and_typed_mounts_are_mounts():
    options = docker_options(
        {
            "devices": ["/dev/fuse", "/dev/a:/dev/b:r", "/dev/c:rwm", {"PathOnHost": "/dev/d", "PathInContainer": "/e"}],
            "mounts": [
                docker.types.Mount("/in", "/data", type="bind", read_only=True),
                docker.types.Mount("/cache", None, type="tmpfs"),
                docker.types.Mount("/more", None),
            ],
            "tmpfs": {"/cache": "size=1g", "/run": ""},
            "volumes": ["/v:/v:ro"],
        }
    )  # fmt: skip
    assert options.mounts == (
        Mount("/v", "/v", read_only=True),
        Mount("/data", "/in", read_only=True),
        Mount("/dev/fuse", "/dev/fuse"),
        Mount("/dev/a", "/dev/b"),
        Mount("/dev/c", "/dev/c"),
        Mount("/dev/d", "/e"),
    )
    assert options.scratch_mounts == ("/cache", "/run", "/more")
    assert options.ignored == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, None), ("/bin/tool", ("/bin/tool",)), ("python 'a b.py'", ("python", "a b.py")), (["a b"], ("a b",)),
        ("", ()), ([], ()), ([""], ()),
    ],
)  # fmt: skip
def test_an_entrypoint_is_split_as_docker_py_does(given, words):
    assert docker_options({"entrypoint": given}).entrypoint == words


def test_variables_come_as_a_mapping_or_as_a_list():
    assert docker_options({"environment": {"A": 1, "B": None}}).environment == {"A": "1", "B": ""}
    assert docker_options({"environment": ["A=1=2", "B"]}).environment == {"A": "1=2", "B": ""}


@pytest.mark.parametrize(
    "options",
    [
        {"network_mode": "none"}, {"network": "none"}, {"network_disabled": True},
    ],
)  # fmt: skip
def test_no_network_can_be_asked_for_in_three_ways(options):
    assert docker_options(options).without_network


def test_what_is_so_anyway_is_not_named():
    options = {
        "name": "x", "detach": True, "tty": True, "init": True, "shm_size": "8g", "ipc_mode": "private", "network_mode": "host",
        "runtime": "runc", "read_only": True, "user": "1000:1000", "pid_mode": "", "privileged": False, "cap_add": [], "dns": None,
        "remove": True, "labels": {"a": "b"}, "cpu_quota": 1000, "cpu_period": 1000,
    }  # fmt: skip
    assert docker_options(options).ignored == ()


def test_what_no_container_here_gets_is_named():
    options = {
        "privileged": True, "cap_add": ["SYS_ADMIN"], "ipc_mode": "host", "pid_mode": "host", "network_mode": "container:x",
        "extra_hosts": {"a": "1.2.3.4"}, "dns": ["1.1.1.1"], "security_opt": ["x"], "ulimits": [1], "runtime": "kata",
        "cpu_period": 1000, "no_such_option": 1,
    }  # fmt: skip
    assert docker_options(options).ignored == tuple(sorted(options))


@pytest.mark.parametrize(
    "options",
    [
        {"mem_limit": "a lot"}, {"mem_limit": True}, {"mem_limit": "-5m"}, {"nano_cpus": "x"}, {"nano_cpus": -1}, {"cpu_count": True},
        {"cpuset_cpus": "0-"}, {"cpuset_cpus": "a"}, {"device_requests": ["gpu"]}, {"tmpfs": ["cache"]}, {"tmpfs": "/a\nb"},
        {"mounts": ["/a:/b"]}, {"mounts": [{"Type": "volume", "Source": "named", "Target": "/x"}]}, {"entrypoint": 5},
        {"entrypoint": "a 'b"}, {"working_dir": 5}, {"cpu_count": float("nan")},
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_by_its_name(options):
    (name,) = options
    with pytest.raises(DockerOptionInvalid, match=name):
        docker_options(options)


def test_a_device_that_is_no_path_is_refused():
    with pytest.raises(MountInvalid):
        docker_options({"devices": ["fuse"]})
