"""A store of SIFs: an image is found, or made, or it is said why not."""

from __future__ import annotations

import json
import shutil

import pytest

from girder_worker_singularity.errors import (
    ConversionFailed,
    ImageNotInStore,
    ImageReferenceInvalid,
    NotEnoughSpace,
    SifDamaged,
    StoreNotWritable,
)
from girder_worker_singularity.source.docker_engine import EngineImage
from girder_worker_singularity.testing import FakeClock
from tests.support.sif_files import sif_bytes
from tests.unit.singularity.store_world import DIGEST, IMAGE, OTHER_DIGEST, names


def test_an_image_that_is_not_there_is_made_once(world):
    store = world.store()
    made = store.ensure(IMAGE)
    again = store.ensure(IMAGE)
    assert made.converted
    assert not again.converted
    assert made.path == again.path == world.root / "team_tool_1.sif"
    assert made.config.entrypoint == ("./run",)
    assert len(world.apptainer.builds) == 1
    assert world.names() == ["team_tool_1.sif", "team_tool_1.sif.json"]
    assert names(world.root / ".leases") == []


def test_what_is_not_there_is_not_found(world):
    assert world.store().find(IMAGE) is None


def test_another_worker_finds_what_one_made(world):
    world.registry[IMAGE] = DIGEST
    world.store().ensure(IMAGE)
    found = world.store().find(IMAGE)
    assert found is not None
    assert found.digest == DIGEST
    assert not found.converted


def test_finding_runs_no_program_and_asks_nobody(world):
    store = world.store()
    store.ensure(IMAGE)
    world.asked.clear()
    world.apptainer.builds.clear()
    assert store.find(IMAGE) is not None
    assert store.ensure(IMAGE) is not None
    assert world.asked == world.apptainer.builds == []


def test_nonsense_is_refused_before_anything_is_touched(world):
    with pytest.raises(ImageReferenceInvalid):
        world.store().ensure("../../etc/passwd")
    assert not world.root.exists()


def test_with_never_a_missing_image_is_an_error(world):
    with pytest.raises(ImageNotInStore, match=IMAGE):
        world.store().ensure(IMAGE, policy="never")


def test_a_damaged_sif_is_named_by_find_and_made_anew_by_ensure(world):
    store = world.store()
    path = store.ensure(IMAGE).path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SifDamaged):
        store.find(IMAGE)
    assert store.ensure(IMAGE).converted
    assert store.find(IMAGE) is not None


def test_a_failed_conversion_leaves_the_sif_in_use_alone(world):
    store = world.store()
    store.ensure(IMAGE)
    content = (world.root / "team_tool_1.sif").read_bytes()
    world.apptainer.failure = "FATAL: broken"
    with pytest.raises(ConversionFailed):
        store.ensure(IMAGE, policy="always")
    assert (world.root / "team_tool_1.sif").read_bytes() == content
    assert world.names() == ["team_tool_1.sif", "team_tool_1.sif.json"]
    assert names(world.root / ".leases") == []


def test_an_apptainer_that_makes_half_a_file_and_says_done_is_not_believed(world):
    world.apptainer.images["docker://docker.io/team/tool:1"] = sif_bytes()[:-100]
    with pytest.raises(SifDamaged):
        world.store().ensure(IMAGE)
    assert world.names() == []


def test_always_keeps_a_sif_whose_digest_the_registry_still_has(world):
    world.registry[IMAGE] = DIGEST
    store = world.store()
    store.ensure(IMAGE)
    assert not store.ensure(IMAGE, policy="always").converted
    world.registry[IMAGE] = OTHER_DIGEST
    assert store.ensure(IMAGE, policy="always").digest == OTHER_DIGEST
    assert len(world.apptainer.builds) == 2


def test_always_converts_when_the_digest_is_not_known(world):
    store = world.store()
    store.ensure(IMAGE)
    assert store.ensure(IMAGE, policy="always").converted


def test_a_replaced_sif_stays_for_the_jobs_that_run_from_it(world):
    store = world.store(keep_replaced_seconds=3600)
    store.ensure(IMAGE)
    store.ensure(IMAGE, policy="always")
    assert len([name for name in world.names() if name.startswith(".old-")]) == 1


def test_a_replaced_sif_goes_when_its_time_is_over(world):
    world.clock = FakeClock(now=10**11)
    store = world.store()
    store.ensure(IMAGE)
    store.ensure(IMAGE, policy="always")
    store.ensure("other:1")
    assert not [name for name in world.names() if name.startswith(".old-")]


def test_what_is_pulled_is_pinned_to_the_digest_that_is_noted(world):
    world.registry[IMAGE] = DIGEST
    world.store().ensure(IMAGE)
    assert world.apptainer.builds[0].argv[-1] == f"docker://docker.io/team/tool@{DIGEST}"


def test_an_image_asked_for_by_digest_is_found_under_its_tag(world):
    world.registry[IMAGE] = DIGEST
    store = world.store()
    made = store.ensure(IMAGE)
    found = store.ensure(f"team/tool@{DIGEST}")
    assert found.path == made.path
    assert not found.converted
    assert store.find(f"team/tool@{OTHER_DIGEST}") is None
    assert store.find(f"other/tool@{DIGEST}") is None


def test_an_image_of_the_docker_engine_is_taken_from_there(world):
    world.engine[IMAGE] = EngineImage("sha256:1", DIGEST)
    made = world.store().ensure(IMAGE)
    assert world.apptainer.builds[0].argv[-1] == "docker-daemon:team/tool:1"
    assert made.digest == DIGEST


def test_always_follows_the_docker_engine(world):
    world.engine[IMAGE] = EngineImage("sha256:1", None)
    store = world.store()
    store.ensure(IMAGE)
    assert not store.ensure(IMAGE, policy="always").converted
    world.engine[IMAGE] = EngineImage("sha256:2", None)
    assert store.ensure(IMAGE, policy="always").converted


def test_an_engine_that_cannot_hand_the_image_over_is_passed_by(world):
    world.engine[IMAGE] = EngineImage("sha256:1", None)
    world.apptainer.failure = "FATAL: Cannot connect to the Docker daemon"

    def only_the_engine_fails() -> None:
        if world.apptainer.builds[-1].argv[-1].startswith("docker://"):
            world.apptainer.failure = None

    world.apptainer.on_build = only_the_engine_fails
    lines: list[str] = []
    assert world.store().ensure(IMAGE, on_progress=lines.append).converted
    assert any("Docker engine" in line for line in lines)


def test_leftovers_of_dead_converters_are_removed_but_only_of_this_image(world):
    world.put(".tmp-team_tool_1~dead.sif", b"x")
    world.put(".tmp-team_tool_11~busy.sif", b"x")
    world.store().ensure(IMAGE)
    assert ".tmp-team_tool_1~dead.sif" not in world.names()
    assert ".tmp-team_tool_11~busy.sif" in world.names()


def test_a_full_disk_is_seen_before_anything_is_converted(world):
    with pytest.raises(NotEnoughSpace, match="MiB left"):
        world.store(minimum_free_bytes=10**18).ensure(IMAGE)
    assert world.apptainer.builds == []


def test_a_store_that_cannot_be_made_is_named(world):
    world.root.write_text("a file")
    with pytest.raises(StoreNotWritable, match=str(world.root)):
        world.store().ensure(IMAGE)


def test_a_torn_note_is_no_note(world):
    store = world.store()
    store.ensure(IMAGE)
    (world.root / "team_tool_1.sif.json").write_text('{"canonical": ')
    assert store.find(IMAGE) is not None


def test_the_note_tells_a_person_where_the_sif_came_from(world):
    world.registry[IMAGE] = DIGEST
    world.store().ensure(IMAGE)
    note = json.loads((world.root / "team_tool_1.sif.json").read_text())
    assert note["reference"] == IMAGE
    assert note["canonical"] == "docker.io/team/tool:1"
    assert note["digest"] == DIGEST
    assert note["source"] == "docker"


def test_with_never_a_damaged_sif_is_named(world):
    world.put("team_tool_1.sif", sif_bytes()[:-1])
    with pytest.raises(SifDamaged):
        world.store().ensure(IMAGE, policy="never")


def test_a_listener_that_fails_does_not_end_the_conversion(world):
    def fail(line):
        raise RuntimeError(line)

    assert world.store().ensure(IMAGE, on_progress=fail).converted


def test_a_registry_by_ipv6_address_has_leftovers_too(world):
    image = "[::1]:5000/a:1"
    world.registry[image] = DIGEST
    world.put(".tmp-[__1]_5000_a_1~dead.sif", b"x")
    world.store().ensure(image)
    assert names(world.root) == [".leases", "[__1]_5000_a_1.sif", "[__1]_5000_a_1.sif.json"]
    assert world.store().find(f"[::1]:5000/a@{DIGEST}") is not None


class TestAStoreThatCanOnlyBeRead:
    """Its leases cannot be made, as on a file system that is mounted read-only."""

    @pytest.fixture
    def closed(self, world):
        world.registry[IMAGE] = DIGEST
        world.store().ensure(IMAGE)
        shutil.rmtree(world.root / ".leases")
        (world.root / ".leases").touch()
        return world

    @pytest.mark.parametrize("policy", ["always", "if-newer"])
    def test_a_sif_that_is_current_is_taken(self, closed, policy):
        assert not closed.store().ensure(IMAGE, policy=policy).converted

    @pytest.mark.parametrize("now", [OTHER_DIGEST, None])
    def test_with_if_newer_the_sif_that_is_there_is_taken_with_a_word(self, closed, now):
        closed.registry = {IMAGE: now}
        lines = []
        assert not closed.store().ensure(IMAGE, policy="if-newer", on_progress=lines.append).converted
        assert "is used" in lines[0]

    @pytest.mark.parametrize("now", [OTHER_DIGEST, None])
    def test_with_always_another_image_is_an_error_that_says_what_to_set(self, closed, now):
        closed.registry = {IMAGE: now}
        with pytest.raises(StoreNotWritable, match=r"older than the image\. .*`pull_policy`"):
            closed.store().ensure(IMAGE, policy="always")

    def test_an_image_without_a_sif_is_an_error(self, closed):
        with pytest.raises(StoreNotWritable, match="Give the worker's user"):
            closed.store().ensure("other:1")
