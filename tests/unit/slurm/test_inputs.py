"""Inputs in the run directory and the task as paths and text, by the stock transforms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from girder_client import GirderClient
from girder_worker.docker.transforms import (
    BindMountVolume,
    ContainerStdOut,
    NamedOutputPipe,
    TemporaryVolume,
    VolumePath,
)
from girder_worker.docker.transforms.girder import (
    GirderFileIdToStream,
    GirderFileIdToVolume,
    GirderItemIdToVolume,
    ProgressPipe,
)
from slicer_cli_web.girder_worker_plugin.direct_docker_run import (
    CommaJoinedVolumes,
    DirectGirderFileIdToVolume,
    GirderApiUrl,
    GirderToken,
)

from girder_worker_singularity.errors import MountInvalid
from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.celery_worker.message import DecodedTask
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.errors import InputUnavailable, JobCancelled, NotSupported
from girder_worker_slurm.girder.inputs import (
    StagedTask,
    StagingPlace,
    StagingRules,
    image_of,
    pull_policy,
    stage,
)
from tests.unit.slurm.http_girder import http_girder


@pytest.fixture
def girder():
    with http_girder() as girder:
        girder.files["f1"] = ("slide.svs", b"first")
        girder.files["f2"] = ("slide.svs", b"second")
        yield girder


class Bench:
    def __init__(self, tmp_path, url="http://girder.test/api/v1"):
        self.tmp_path = tmp_path
        self.run = tmp_path / "run" / "gw-1"
        self.run.mkdir(parents=True)
        #: Where the inputs are brought to, if not to the run directory.
        self.place = None
        self.client = GirderClient(apiUrl=url)
        self.client.token = "secret"

    def stage(self, *container_args, check=lambda: None, args=(), **kwargs):
        rules = StagingRules(**kwargs.pop("rules", {}))
        kwargs = {"image": "image:1", "container_args": list(container_args), **kwargs}
        decoded = DecodedTask(tuple(args), kwargs, {}, None, ())
        to = StagingPlace(self.run, self.place or self.run, RunDirectories(self.tmp_path).can_read)
        return stage(decoded, to=to, name="t1", rules=rules, check=check)

    def host_path(self, task, path):
        """Where a path of the container lies on this host."""
        mount = max(
            (mount for mount in task.mounts if path.startswith(mount.destination)),
            key=lambda mount: len(mount.destination),
        )
        return self.tmp_path.__class__(mount.source + path[len(mount.destination) :])


@pytest.fixture
def bench(tmp_path, girder):
    return Bench(tmp_path, girder.url)


def test_plain_arguments_become_text(bench):
    assert bench.stage("--x", 1, 0.5, True, "a b").arguments == ("--x", "1", "0.5", "True", "a b")


def test_an_input_is_downloaded_into_the_volume_and_named_as_in_the_container(bench):
    task = bench.stage(GirderFileIdToVolume("f1", filename="slide.svs", gc=bench.client))
    (path,) = task.arguments
    assert path.startswith("/mnt/girder_worker/t1/")
    assert path.endswith("/slide.svs")
    assert bench.host_path(task, path).read_bytes() == b"first"


def test_two_inputs_of_one_name_do_not_meet(bench):
    inputs = [GirderFileIdToVolume(name, filename="slide.svs", gc=bench.client) for name in ("f1", "f2")]
    task = bench.stage(*inputs)
    assert [bench.host_path(task, path).read_bytes() for path in task.arguments] == [b"first", b"second"]


def test_an_input_and_an_output_of_one_name_do_not_meet(bench):
    task = bench.stage(
        GirderFileIdToVolume("f1", filename="slide.svs", gc=bench.client), VolumePath("slide.svs")
    )
    source, target = task.arguments
    assert source != target
    assert target == "/mnt/girder_worker/t1/slide.svs"


def test_inputs_inside_one_argument_are_brought_as_well(bench):
    inputs = [GirderFileIdToVolume(name, filename="slide.svs", gc=bench.client) for name in ("f1", "f2")]
    (argument,) = bench.stage(CommaJoinedVolumes(inputs)).arguments
    assert len(set(argument.split(","))) == 2


def test_address_and_token_are_handed_on_with_the_address_of_this_site(bench, girder):
    arguments = (
        GirderApiUrl(gc=GirderClient(apiUrl="http://inside:8080/api/v1")),
        GirderToken(gc=bench.client),
    )
    task = bench.stage(*arguments, rules={"api_url": girder.url})
    assert task.arguments == (f"{girder.url}/", "secret")


def test_a_missing_input_says_so(bench):
    with pytest.raises(InputUnavailable, match="400"):
        bench.stage(GirderFileIdToVolume("nothing", gc=bench.client))


def test_a_cancel_stops_before_the_next_input(bench, girder):
    seen = []

    def check():
        seen.append(1)
        if len(seen) > 4:
            raise JobCancelled("in Girder")

    inputs = [GirderFileIdToVolume("f1", filename=f"{number}", gc=bench.client) for number in range(5)]
    with pytest.raises(JobCancelled):
        bench.stage(*inputs, check=check)
    assert girder.asked("GET", "/file/f1/download") < 5


# -- files that the cluster sees


def direct(bench, path, file_id="f1"):
    return DirectGirderFileIdToVolume(
        file_id, filename="slide.svs", direct_file_path=str(path), gc=bench.client
    )


def test_a_file_that_is_seen_here_is_mounted_read_only_and_not_downloaded(bench, girder, tmp_path):
    (tmp_path / "asset").write_bytes(b"first")
    task = bench.stage(direct(bench, tmp_path / "asset"))
    (mount,) = [mount for mount in task.mounts if mount.source == str(tmp_path / "asset")]
    assert mount.read_only
    assert task.arguments == (mount.destination,)
    assert girder.asked("GET", "/file/f1/download") == 0


def test_two_files_of_one_name_that_are_seen_here_do_not_meet(bench, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    task = bench.stage(direct(bench, tmp_path / "a", "f1"), direct(bench, tmp_path / "b", "f2"))
    assert len(set(task.arguments)) == 2


def test_a_prefix_leads_to_where_the_servers_files_are_here(bench, tmp_path):
    (tmp_path / "site" / "assetstore").mkdir(parents=True)
    (tmp_path / "site" / "assetstore" / "ab").write_bytes(b"first")
    task = bench.stage(direct(bench, "/assetstore/ab"), rules={"mount_prefix": f"{tmp_path}/site/"})
    assert str(tmp_path / "site" / "assetstore" / "ab") in {mount.source for mount in task.mounts}


@pytest.mark.parametrize("allowed", ["elsewhere", "store2", "store/../elsewhere"])
def test_a_file_outside_the_allowed_directories_is_downloaded(bench, girder, tmp_path, allowed):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_bytes(b"x")
    rules = {"direct_paths": (str(tmp_path / allowed),)}
    task = bench.stage(direct(bench, tmp_path / "store" / "a"), rules=rules)
    assert len(task.mounts) == 1
    assert girder.asked("GET", "/file/f1/download") == 1


def test_a_path_that_climbs_out_of_the_allowed_directory_is_not_allowed(bench, girder, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    rules = {"direct_paths": (f"{tmp_path}/store/",)}
    bench.stage(direct(bench, f"{tmp_path}/store/../secret"), rules=rules)
    assert girder.asked("GET", "/file/f1/download") == 1


def test_a_file_inside_an_allowed_directory_is_mounted(bench, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_bytes(b"x")
    rules = {"direct_paths": ("/nowhere", f"{tmp_path}/store/")}
    assert len(bench.stage(direct(bench, tmp_path / "store" / "a"), rules=rules).mounts) == 2


def test_a_file_that_is_not_here_is_downloaded(bench, girder, tmp_path):
    bench.stage(direct(bench, tmp_path / "nothing"))
    assert girder.asked("GET", "/file/f1/download") == 1


# -- volumes


def mounts(task):
    return [(mount.source, mount.destination, mount.read_only) for mount in task.mounts[1:]]


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        ({"/data": {"bind": "/in", "mode": "ro"}}, [("/data", "/in", True)]),
        ({"/data": {"bind": "/in", "mode": "rw"}}, [("/data", "/in", False)]),
        (["/data:/in:ro", "/more:/out"], [("/data", "/in", True), ("/more", "/out", False)]),
        ([BindMountVolume("/data", "/in", mode="ro")], [("/data", "/in", True)]),
        ({}, []),
        ([], []),
        (None, []),
    ],
)
def test_volumes_in_dockers_forms_become_mounts(bench, volumes, expected):
    assert mounts(bench.stage(volumes=volumes)) == expected


@pytest.mark.parametrize("volumes", [["data:/in"], {"/data": {"mode": "ro"}}, ["/data:in"]])
def test_a_volume_that_cannot_be_mounted_is_refused(bench, volumes):
    with pytest.raises(MountInvalid):
        bench.stage(volumes=volumes)


def test_a_temporary_volume_lies_in_the_run_directory(bench):
    volume = TemporaryVolume()
    task = bench.stage(VolumePath("x", volume), volumes=[volume])
    source, destination, is_read_only = mounts(task)[0]
    assert source.startswith(str(bench.run))
    assert task.arguments == (f"{destination}/x",)
    assert not is_read_only


def test_inputs_that_are_brought_elsewhere_first_are_mounted_from_the_run_directory(bench, tmp_path, girder):
    del girder
    bench.place = tmp_path / "staging"
    bench.place.mkdir()
    volume = TemporaryVolume()
    slide = GirderFileIdToVolume("f1", filename="slide.svs", gc=bench.client)
    task = bench.stage(slide, VolumePath("x", volume), volumes=[volume, BindMountVolume("/data", "/in")])
    sources = {destination: source for source, destination, _ in mounts(task)}
    assert sources.pop("/in") == "/data"
    assert all(Path(source).is_relative_to(bench.run) for source in sources.values())
    inside, outside = (task.arguments[0].removeprefix("/mnt/girder_worker/t1/"), bench.run / "volume")
    assert (bench.place / "volume" / inside).read_bytes() == b"first"
    assert not outside.exists()


def test_the_tasks_own_volume_has_the_same_place_in_every_attempt(bench, tmp_path):
    first = bench.stage(VolumePath("out"))
    second = Bench(tmp_path / "again").stage(VolumePath("out"))
    assert first.arguments == second.arguments
    assert first.mounts[0].destination == second.mounts[0].destination
    assert first.mounts[0].source != second.mounts[0].source


# -- what a cluster cannot do


@pytest.mark.parametrize("make", [lambda: NamedOutputPipe("x"), ProgressPipe])
def test_pipes_between_worker_and_container_are_refused(bench, make):
    with pytest.raises(NotSupported):
        bench.stage(make())


def test_streams_from_girder_are_refused(bench):
    with pytest.raises(NotSupported, match=r"streams|pipe"):
        bench.stage(GirderFileIdToStream("f1", gc=bench.client))


def test_stream_connectors_are_refused(bench):
    with pytest.raises(NotSupported, match="streams"):
        bench.stage(stream_connectors=[ContainerStdOut()])
    assert bench.run.exists()


# -- options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"A": 1, "B": None, "C": "x=y"}, {"A": "1", "B": "", "C": "x=y"}),
        (["A=1", "B", "C=x=y"], {"A": "1", "B": "", "C": "x=y"}),
        (None, {}),
        ([], {}),
    ],
)
def test_the_environment_comes_in_dockers_forms(bench, given, expected):
    assert bench.stage(environment=given).environment == expected


def test_options_of_docker_are_understood_or_named(bench):
    task = bench.stage(
        entrypoint="/bin/tool",
        working_dir="/w",
        hostname="h",
        network_mode="none",
        device_requests=[{"count": -1}],
        shm_size="8g",
        mem_limit="1g",
        nano_cpus=2_500_000_000,
        tmpfs={"/cache": "size=1g"},
        devices=["/dev/fuse"],
        user="root",
        read_only=True,
        privileged=True,
        cap_add=["SYS_ADMIN"],
        dns=[],
    )
    assert task.entrypoint == ("/bin/tool",)
    assert (task.working_dir, task.hostname, task.without_network) == ("/w", "h", True)
    assert task.wishes == ResourceWishes(memory_mib=1024, cpus=3, gpus=1)
    assert (task.scratch_mounts, task.user, task.read_only) == (("/cache",), "root", True)
    assert ("/dev/fuse", "/dev/fuse", False) in mounts(task)
    assert task.ignored_options == ("cap_add", "privileged")
    assert StagedTask.from_json(json.loads(json.dumps(task.as_json()))) == task


def test_a_task_that_an_older_version_staged_is_understood(bench):
    stored = bench.stage().as_json()
    for name in ("user", "read_only", "scratch_mounts", "wishes"):
        del stored[name]
    assert StagedTask.from_json({**stored, "wants_gpu": True}).wishes == ResourceWishes(gpus=1)


def test_site_options_stand_below_those_of_the_task(bench):
    rules = {
        "run_options": {"working_dir": "/site", "network_mode": "none", "volumes": ["/ref:/ref"], "tty": True}
    }
    task = bench.stage(working_dir="/task", volumes=["/data:/in"], rules=rules)
    assert task.working_dir == "/task"
    assert task.without_network
    assert mounts(task) == [("/data", "/in", False), ("/ref", "/ref", True)]


def test_positional_arguments_are_those_of_docker_run(bench):
    task = bench.stage(args=("image:2", False, "/bin/x", ["a"], {"/d": {"bind": "/d"}}), image=None)
    assert (task.image, task.pull_policy, task.entrypoint) == ("image:2", "if-not-present", ("/bin/x",))
    assert task.arguments == ("a",)


@pytest.mark.parametrize(
    ("wish", "policy"),
    [
        (True, "always"),
        ("true", "always"),
        ("always", "always"),
        (False, "if-not-present"),
        (None, "if-not-present"),
    ]
    + [("if-not-present", "if-not-present"), ("false", "if-not-present")],
)
def test_the_wish_to_pull_is_understood(wish, policy):
    assert pull_policy(wish) == policy


@pytest.mark.parametrize("image", ["", " ", None, 7])
def test_a_task_without_an_image_is_refused(image):
    with pytest.raises(NotSupported, match="no Docker image"):
        image_of(DecodedTask((), {"image": image}, {}, None, ()))


def test_a_staged_task_survives_its_record(bench):
    task = bench.stage("a", volumes=["/data:/in:ro"], environment={"A": "1"}, entrypoint=["/x", "y"])
    assert StagedTask.from_json(task.as_json()) == task


def test_an_item_is_brought_with_its_files(bench, girder, monkeypatch):
    item = GirderItemIdToVolume("i1", gc=bench.client)

    def download(self, item_id, path):
        self_path = bench.tmp_path.__class__(path) / "an item"
        self_path.mkdir()
        (self_path / item_id).write_bytes(b"x")

    monkeypatch.setattr(GirderClient, "downloadItem", download)
    (path,) = bench.stage(item).arguments
    assert path.endswith("/i1/an item")
