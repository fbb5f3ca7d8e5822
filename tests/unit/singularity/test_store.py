from __future__ import annotations

import json
import os
import shutil
import threading

import pytest

from girder_worker_singularity.errors import (
    ConversionFailed,
    ConversionStopped,
    ImageNotInStore,
    ImageReferenceInvalid,
    NotEnoughSpace,
    SifDamaged,
    StoreNotWritable,
)
from girder_worker_singularity.sif import checksum
from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.note import note_path
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.source.docker_engine import EngineImage
from girder_worker_singularity.testing import FakeClock
from tests.support.sif_files import FakeApptainer, sif_bytes

IMAGE = "team/tool:1"
DIGEST, OTHER_DIGEST = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class World:
    """A store, the Apptainer it uses, and what registry and engine answer."""

    def __init__(self, root, tmp_dir):
        self.root = root
        self.apptainer = FakeApptainer()
        self.clock = FakeClock()
        self.registry: dict[str, str] = {}
        self.engine: dict[str, EngineImage] = {}
        self.asked: list[str] = []
        self.tmp_dir = tmp_dir

    def store(self, **options) -> SifStore:
        convert = ConvertOptions(tmp_dir=self.tmp_dir)
        return SifStore(
            self.root,
            self.apptainer.runner(),
            self.clock,
            StoreOptions(convert, **{"minimum_free_bytes": 0, **options}),
            ask_registry=self.ask_registry,
            ask_engine=self.ask_engine,
        )

    def ask_registry(self, reference, **_how):
        self.asked.append(str(reference))
        return self.registry.get(str(reference))

    def ask_engine(self, reference):
        self.asked.append(str(reference))
        return self.engine.get(str(reference))

    def names(self) -> list[str]:
        return [name for name in names(self.root) if name != ".leases"]

    def put(self, name, content=None) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / name).write_bytes(sif_bytes(definition="") if content is None else content)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "store", tmp_path / "build")


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


def test_a_sif_put_there_by_hand_counts_as_its_image(world):
    world.put("team_tool_1.sif")
    assert world.store().find(IMAGE).path.name == "team_tool_1.sif"
    assert not world.store().ensure(IMAGE, policy="never").converted


def test_with_never_a_missing_image_is_an_error(world):
    with pytest.raises(ImageNotInStore, match=IMAGE):
        world.store().ensure(IMAGE, policy="never")


def test_images_with_one_name_never_share_a_file(world):
    store = world.store()
    one, other = store.ensure("a/b:c"), store.ensure("a_b:c")
    assert one.path.name == "a_b_c.sif"
    assert other.path != one.path
    assert store.find("a/b:c").path == one.path
    assert store.find("a_b:c").path == other.path


def test_a_sif_put_there_by_hand_belongs_to_who_came_first(world):
    world.put("a_b_c.sif")
    store = world.store()
    assert store.ensure("a/b:c").path.name == "a_b_c.sif"
    assert store.ensure("a_b:c").path.name != "a_b_c.sif"


def test_who_does_not_get_a_sif_of_its_name_is_told_whose_it_is_and_what_to_do(world):
    world.put("a_b_c.sif")
    store = world.store()
    store.ensure("a_b_c")
    heard = []
    store.ensure("a/b:c", on_progress=heard.append)
    assert any("first used as a_b_c" in line and "girder-singularity adopt a/b:c" in line for line in heard)
    with pytest.raises(ImageNotInStore, match="girder-singularity adopt a_b:c"):
        store.ensure("a_b:c", policy="never")


def test_an_adopted_sif_is_its_images_whoever_used_it_before_and_stays_so(world):
    world.put("a_b_c.sif")
    store = world.store()
    store.ensure("a_b_c")
    assert store.ensure("a/b:c").path.name != "a_b_c.sif"
    assert store.adopt("a/b:c").name == "a_b_c.sif"
    assert store.find("a/b:c").path.name == "a_b_c.sif"
    assert store.find("a_b_c") is None
    assert store.ensure("a_b_c").path.name != "a_b_c.sif"
    assert store.find("a/b:c").path.name == "a_b_c.sif"


def test_a_sif_may_be_adopted_although_it_says_it_was_pulled_as_another(world):
    world.put("a_b_c.sif", sif_bytes(definition="bootstrap: docker\nfrom: a_b:c\n"))
    store = world.store()
    store.adopt("a/b:c")
    assert store.find("a/b:c").path.name == "a_b_c.sif"


def test_a_sif_that_was_converted_here_is_not_adopted(world):
    store = world.store()
    store.ensure("a/b:c")
    with pytest.raises(ImageNotInStore, match="made of a/b:c"):
        store.adopt("a_b:c")
    with pytest.raises(ImageNotInStore, match=r"no other_1\.sif"):
        store.adopt("other:1")
    assert store.find("a/b:c") is not None


def test_a_file_that_is_no_whole_sif_is_not_adopted(world):
    world.put("a_b_c.sif", b"SIF? no")
    with pytest.raises(SifDamaged):
        world.store().adopt("a/b:c")
    assert world.names() == ["a_b_c.sif"]


def test_a_sif_pulled_by_hand_says_whose_it_is(world):
    world.put("a_b_c.sif", sif_bytes(definition="bootstrap: docker\nfrom: a_b:c\n"))
    store = world.store()
    assert store.find("a/b:c") is None
    assert store.find("a_b:c").path.name == "a_b_c.sif"


def test_a_sif_pulled_by_hand_from_a_mirror_counts_by_its_name(world):
    world.put("a_b_c.sif", sif_bytes(definition="bootstrap: docker\nfrom: mirror:5000/a/b:c\n"))
    assert world.store().find("a/b:c") is not None


def test_a_name_is_kept_for_its_owner_after_the_file_is_gone(world):
    store = world.store()
    store.ensure("a/b:c").path.unlink()
    assert store.find("a/b:c") is None
    assert store.ensure("a_b:c").path.name != "a_b_c.sif"
    assert store.ensure("a/b:c").path.name == "a_b_c.sif"


def test_a_file_replaced_by_hand_keeps_its_owner_and_loses_its_digest(world):
    world.registry["a/b:c"] = DIGEST
    store = world.store()
    store.ensure("a/b:c")
    world.put("a_b_c.sif")
    assert store.find("a/b:c").digest is None
    assert store.find("a_b:c") is None


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


def test_many_threads_that_want_one_image_make_it_once_and_all_see_it(world):
    store = world.store()
    gate = threading.Event()
    world.apptainer.on_build = lambda: gate.wait(20)
    found, lines = [], []
    threads = [
        threading.Thread(target=lambda: found.append(store.ensure(IMAGE, on_progress=lines.append)))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    while not world.apptainer.builds:
        threading.Event().wait(0.01)
    gate.set()
    for thread in threads:
        thread.join()
    assert len(world.apptainer.builds) == 1
    assert len({sif.path for sif in found}) == 1
    assert len(found) == 20


def test_who_waits_for_a_failed_conversion_gets_its_error(world):
    store = world.store()
    gate = threading.Event()
    world.apptainer.failure = "FATAL: broken"
    world.apptainer.on_build = lambda: gate.wait(20)
    errors = []

    def want() -> None:
        with pytest.raises(ConversionFailed) as caught:
            store.ensure(IMAGE)
        errors.append(caught.value)

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not world.apptainer.builds:
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)
    gate.set()
    for thread in threads:
        thread.join()
    assert len(errors) == 3


def test_one_that_is_stopped_does_not_stop_the_others(world):
    store = world.store()
    gate, stop = threading.Event(), threading.Event()
    world.apptainer.on_build = lambda: gate.wait(20)
    outcome = {}

    def want(name, should_stop) -> None:
        try:
            outcome[name] = store.ensure(IMAGE, should_stop=should_stop)
        except ConversionStopped as error:
            outcome[name] = error

    first = threading.Thread(target=want, args=("first", stop.is_set))
    first.start()
    while not world.apptainer.builds:
        threading.Event().wait(0.01)
    second = threading.Thread(target=want, args=("second", None))
    second.start()
    stop.set()
    gate.set()
    first.join()
    second.join()
    assert isinstance(outcome["first"], ConversionStopped)
    assert outcome["second"].path.exists()


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


def steal_lease(world) -> None:
    lease = world.root / ".leases" / "team_tool_1"
    lease.unlink()
    lease.write_text("somebody else")


def test_a_converter_whose_lease_is_taken_again_and_again_publishes_nothing(world):
    world.apptainer.on_build = lambda: steal_lease(world)
    with pytest.raises(ConversionStopped, match="taken over"):
        world.store().ensure(IMAGE)
    assert names(world.root) == [".leases"]


def test_a_converter_that_lost_its_lease_takes_what_the_thief_made(world):
    def steal_and_convert() -> None:
        steal_lease(world)
        world.put("team_tool_1.sif")

    world.apptainer.on_build = steal_and_convert
    sif = world.store().ensure(IMAGE)
    assert not sif.converted
    assert len(world.apptainer.builds) == 1
    assert sum(world.clock.slept) >= 60


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


def flip(path, *, at=-1, later=0.0):
    """One byte of the file is another, as if somebody had written there at that many seconds after it was made."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END)
        byte = file.read(1)
        file.seek(at, os.SEEK_END)
        file.write(bytes([byte[0] ^ 255]))
    os.utime(path, (before.st_mtime + later, before.st_mtime + later))


def test_a_sif_whose_contents_were_written_to_is_damaged_and_made_anew(world):
    made = world.store().ensure("team/tool:1")
    flip(made.path, later=60)
    with pytest.raises(SifDamaged, match="changed since it was made"):
        world.store().find("team/tool:1")
    assert world.store().find_for("team/tool:1", "if-not-present") is None
    assert world.store().ensure("team/tool:1").converted
    assert world.store().find("team/tool:1") is not None


def test_a_sif_that_only_got_another_time_is_read_once_and_used(world, monkeypatch):
    store = world.store()
    made = store.ensure("team/tool:1")
    os.utime(made.path, (1e9, 1e9))
    read = []
    original = checksum.sha256_of
    monkeypatch.setattr(checksum, "sha256_of", lambda path: read.append(path) or original(path))
    for _ in range(3):
        assert not store.ensure("team/tool:1").converted
    assert read == [made.path]


def test_contents_are_not_read_where_nobody_wrote(world, monkeypatch):
    world.store().ensure("team/tool:1")
    monkeypatch.setattr(checksum, "sha256_of", pytest.fail)
    assert world.store().find("team/tool:1") is not None


def test_a_disk_that_changes_contents_by_itself_is_found_by_reading_them(world):
    made = world.store().ensure("team/tool:1")
    assert checksum.contents_problem(made.path) == ""
    flip(made.path)
    assert "changed" in checksum.contents_problem(made.path)


def test_a_note_of_before_there_were_checksums_is_enough(world):
    made = world.store().ensure("team/tool:1")
    note = note_path(made.path)
    values = json.loads(note.read_text())
    del values["sha256"], values["modified"]
    note.write_text(json.dumps(values))
    os.utime(made.path, (1e9, 1e9))
    assert not world.store().ensure("team/tool:1").converted
    assert checksum.contents_problem(made.path) == ""
