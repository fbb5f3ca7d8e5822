"""Which SIFs may go; and that none goes that somebody uses, or that cannot be made again."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from girder_worker_singularity.holder import Holder
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.lease import Lease
from girder_worker_singularity.sif import prune as prune_module
from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.inventory import StoredSif, inventory
from girder_worker_singularity.sif.note import SifNote, note_path, write_note
from girder_worker_singularity.sif.prune import DAY_SECONDS, PruneRules, choose, prune
from girder_worker_singularity.sif.shelf import LEASES
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.sif.use import last_used, note_use, stamp_path, take
from girder_worker_singularity.source.docker_engine import EngineImage
from girder_worker_singularity.testing import FakeClock
from tests.support.sif_files import FakeApptainer, sif_bytes

NOW = 1_700_000_000.0
DIGEST = "sha256:" + "ab" * 32


def stored(image, idle_days, size=100, **facts) -> StoredSif:
    reference = parse_image_reference(image)
    values = {
        "path": Path("/s", reference.sif_name),
        "size_bytes": size,
        "identity": "x",
        "image": image,
        "reference": reference,
        "made_at": NOW - idle_days * DAY_SECONDS,
        "last_used_at": None,
        "source": "docker",
        "digest": DIGEST,
        "can_be_made_again": True,
    }
    return StoredSif(**{**values, **facts})


def chosen(sifs, **rules) -> list[str]:
    return [removal.sif.image for removal in choose(sifs, PruneRules(**rules), NOW)]


def test_what_nobody_used_for_long_enough_may_go():
    sifs = [stored("a:1", 30), stored("b:1", 29.9), stored("c:1", 90, last_used_at=NOW - 2 * DAY_SECONDS)]
    assert chosen(sifs, unused_seconds=30 * DAY_SECONDS) == ["a:1"]


def test_without_a_rule_nothing_may_go():
    assert chosen([stored("a:1", 1000)]) == []


def test_over_the_size_the_least_recently_used_go_until_it_fits():
    sifs = [stored("new:1", 2), stored("old:1", 50), stored("older:1", 60), stored("oldest:1", 70, size=150)]
    assert chosen(sifs, most_bytes=450) == []
    assert chosen(sifs, most_bytes=449) == ["oldest:1"]
    assert chosen(sifs, most_bytes=250) == ["oldest:1", "older:1"]


def test_what_goes_for_another_reason_counts_towards_the_size():
    sifs = [stored("old:1", 50), stored("other:1", 20)]
    assert chosen(sifs, most_bytes=100, unused_seconds=40 * DAY_SECONDS) == ["old:1"]


@pytest.mark.parametrize(
    "rules", [{"unused_seconds": 0.0}, {"most_bytes": 0}, {"keep_images": frozenset({"x"})}]
)
def test_what_was_used_within_a_day_stays_whatever_the_rules(rules):
    assert chosen([stored("a:1", 0.99)], **rules) == []
    assert chosen([stored("a:1", 9, last_used_at=NOW - 0.99 * DAY_SECONDS)], **rules) == []
    assert chosen([stored("a:1", 9)], **rules) == ["a:1"]


@pytest.mark.parametrize(
    "rules", [{"unused_seconds": 0.0}, {"most_bytes": 0}, {"keep_images": frozenset({"x"})}]
)
def test_what_cannot_be_made_again_stays_whatever_the_rules(rules):
    assert chosen([stored("a:1", 900, can_be_made_again=False)], **rules) == []


def test_images_to_keep_are_kept_by_tag_and_by_digest():
    sifs = [stored("team/a:1", 9), stored("team/a:2", 9), stored("b", 9), stored("team/c:1", 9)]
    keep = frozenset(
        parse_image_reference(name).canonical
        for name in ("docker.io/team/a:1", "library/b:latest", f"team/c@{DIGEST}")
    )
    assert chosen(sifs, keep_images=keep) == ["team/a:2"]


def test_what_was_used_within_a_week_is_only_set_aside():
    removals = choose([stored("a:1", 6.9), stored("b:1", 7.1)], PruneRules(unused_seconds=0.0), NOW)
    assert {removal.sif.image: removal.at_once for removal in removals} == {"a:1": False, "b:1": True}


class Shelf:
    """A store with real files, seen from a clock that is as far in the future as a test says."""

    def __init__(self, tmp_path):
        self.root = tmp_path / "store"
        self.clock = FakeClock(time.time())
        self.store = SifStore(
            self.root,
            FakeApptainer().runner(),
            self.clock,
            StoreOptions(ConvertOptions(tmp_dir=tmp_path / "build"), minimum_free_bytes=0),
            ask_registry=lambda *_: DIGEST,
            ask_engine=lambda _: None,
        )

    def make(self, image):
        return self.store.ensure(image).path

    def prune(self, *, dry_run=False, **rules):
        return prune(self.root, PruneRules(**rules), self.clock, dry_run=dry_run)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name not in (".leases", ".used"))


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def test_a_sif_goes_with_its_note_and_its_stamp(shelf):
    path = shelf.make("team/tool:1")
    note_use(path, shelf.clock)
    shelf.clock.advance(30 * DAY_SECONDS)
    size = path.stat().st_size
    report = shelf.prune(unused_seconds=30 * DAY_SECONDS)
    assert [removal.sif.path for removal in report.removed] == [path]
    assert (report.freed_bytes, report.set_aside_bytes, report.left_bytes) == (size, 0, 0)
    assert shelf.names() == []
    assert not stamp_path(path).exists()
    assert list((shelf.root / LEASES).iterdir()) == []


def test_the_next_job_has_it_made_again(shelf):
    path = shelf.make("team/tool:1")
    shelf.clock.advance(30 * DAY_SECONDS)
    shelf.prune(unused_seconds=0.0)
    again = shelf.store.ensure("team/tool:1")
    assert (again.path, again.converted) == (path, True)


def test_a_dry_run_tells_the_same_and_removes_nothing(shelf):
    shelf.make("team/tool:1")
    shelf.clock.advance(30 * DAY_SECONDS)
    before = shelf.names()
    told = shelf.prune(unused_seconds=0.0, dry_run=True)
    assert shelf.names() == before
    assert told == shelf.prune(unused_seconds=0.0)


def test_a_sif_that_a_live_job_stamps_is_never_removed(shelf):
    path = shelf.make("team/tool:1")
    shelf.clock.advance(30 * DAY_SECONDS)
    note_use(path, shelf.clock)
    for _hour in range(48):
        shelf.clock.advance(3600)
        note_use(path, shelf.clock)
        assert shelf.prune(unused_seconds=0.0, most_bytes=0).removed == ()
    assert shelf.prune(most_bytes=0).over_bytes == path.stat().st_size


def test_what_is_set_aside_keeps_its_content_for_a_week_and_then_goes(shelf):
    path = shelf.make("team/tool:1")
    content = path.read_bytes()
    shelf.clock.advance(2 * DAY_SECONDS)
    report = shelf.prune(most_bytes=0)
    assert (report.freed_bytes, report.set_aside_bytes) == (0, len(content))
    (aside,) = shelf.root.glob(".old-team_tool_1~*.sif")
    assert aside.read_bytes() == content
    assert shelf.store.find("team/tool:1") is None
    assert shelf.prune().leftovers == ()
    shelf.clock.advance(7 * DAY_SECONDS)
    report = shelf.prune()
    assert report.leftovers == (aside,)
    assert report.freed_bytes == len(content)
    assert shelf.names() == []


def test_what_a_killed_conversion_left_goes_after_days(shelf):
    shelf.make("team/tool:1")
    left = shelf.root / ".tmp-team_tool_2~0123456789ab.sif"
    left.write_bytes(b"half")
    shelf.clock.advance(2 * DAY_SECONDS)
    assert shelf.prune().leftovers == ()
    shelf.clock.advance(2 * DAY_SECONDS)
    assert shelf.prune().leftovers == (left,)
    assert not left.exists()


def test_what_killed_holders_of_leases_left_goes_after_days(shelf):
    path = shelf.make("team/tool:1")
    left = [shelf.root / LEASES / f".{path.stem}.{kind}-0123" for kind in ("holder", "broken")]
    with Lease.acquire(shelf.root / LEASES / path.stem, Holder.this_process(), shelf.clock) as lease:
        for file in left:
            file.touch()
        assert shelf.prune().leftovers == ()
        shelf.clock.advance(4 * DAY_SECONDS)
        for file in (shelf.root / LEASES).iterdir():  # a living holder writes every few seconds
            if file not in left:
                os.utime(file, (shelf.clock.now(), shelf.clock.now()))
        assert set(shelf.prune().leftovers) == set(left)
        lease.check()
    assert list((shelf.root / LEASES).iterdir()) == []


def test_a_name_under_conversion_is_left_alone(shelf):
    path = shelf.make("team/tool:1")
    shelf.clock.advance(30 * DAY_SECONDS)
    with Lease.acquire(shelf.root / LEASES / path.stem, Holder.this_process("SIF converter"), shelf.clock):
        report = shelf.prune(unused_seconds=0.0)
    assert report.removed == ()
    assert [why for _, why in report.spared] == ["it is being converted"]
    assert path.exists()


def test_the_lease_is_that_of_the_image_also_under_an_unambiguous_name(shelf):
    shelf.make("team_tool:1")
    path = shelf.make("team/tool:1")
    assert path.name != "team_tool_1.sif"
    shelf.clock.advance(30 * DAY_SECONDS)
    with Lease.acquire(shelf.root / LEASES / "team_tool_1", Holder.this_process(""), shelf.clock):
        assert shelf.prune(unused_seconds=0.0).removed == ()


@pytest.mark.parametrize("moment", ["before the renaming", "after the renaming"])
def test_a_job_that_comes_in_the_middle_gets_its_sif(shelf, monkeypatch, moment):
    path = shelf.make("team/tool:1")
    content = path.read_bytes()
    shelf.clock.advance(30 * DAY_SECONDS)
    rename, took = Path.rename, []

    def rename_while_a_job_comes(self, target):
        if self != path:
            return rename(self, target)
        if moment == "before the renaming":
            took.append(take(path, shelf.clock))
            return rename(self, target)
        done = rename(self, target)
        took.append(take(path, shelf.clock))
        return done

    monkeypatch.setattr(Path, "rename", rename_while_a_job_comes)
    report = shelf.prune(unused_seconds=0.0)
    assert took == [moment == "before the renaming"]
    assert report.removed == ()
    assert path.read_bytes() == content
    assert shelf.store.find("team/tool:1").digest == DIGEST
    assert list(shelf.root.glob(".old-*")) == []


def test_a_sif_that_was_replaced_since_the_look_stays(shelf, monkeypatch):
    path = shelf.make("team/tool:1")
    shelf.clock.advance(30 * DAY_SECONDS)

    def choose_and_replace(*arguments):
        found = choose(*arguments)
        path.write_bytes(sif_bytes())
        return found

    monkeypatch.setattr(prune_module, "choose", choose_and_replace)
    report = shelf.prune(unused_seconds=0.0)
    assert [why for _, why in report.spared] == ["it was used or replaced a moment ago"]
    assert path.exists()


def test_a_sif_put_there_by_hand_is_never_removed(shelf):
    shelf.root.mkdir()
    (shelf.root / "mine_1.sif").write_bytes(sif_bytes(definition=""))
    (shelf.root / "used_1.sif").write_bytes(sif_bytes(definition=""))
    shelf.store.ensure("used:1")
    replaced = shelf.make("replaced:1")
    replaced.write_bytes(sif_bytes(definition=""))
    shelf.clock.advance(900 * DAY_SECONDS)
    assert shelf.prune(unused_seconds=0.0, most_bytes=0, keep_images=frozenset({"x"})).removed == ()
    assert {sif.source for sif in inventory(shelf.root)} == {"put there by hand"}


def test_the_inventory_says_what_is_known(shelf):
    path = shelf.make("team/tool:1")
    note_use(path, shelf.clock)
    (sif,) = inventory(shelf.root)
    assert (sif.image, sif.source, sif.digest) == ("team/tool:1", "docker", DIGEST)
    assert sif.made_at == sif.last_used_at == sif.idle_since == shelf.clock.now()
    assert sif.can_be_made_again
    assert sif.damage == ""


def test_a_damaged_sif_is_in_the_inventory_and_may_go(shelf):
    path = shelf.make("team/tool:1")
    os.truncate(path, 33_000)
    (sif,) = inventory(shelf.root)
    assert "cut off" in sif.damage
    shelf.clock.advance(30 * DAY_SECONDS)
    assert len(shelf.prune(unused_seconds=0.0).removed) == 1


def test_a_note_of_nobody_can_read_makes_no_sif_removable(shelf):
    path = shelf.make("team/tool:1")
    note_path(path).write_text("{")
    assert not inventory(shelf.root)[0].can_be_made_again


def test_a_note_of_an_older_version_is_enough(shelf):
    path = shelf.make("team/tool:1")
    (sif,) = inventory(shelf.root)
    write_note(path, SifNote("docker.io/team/tool:1", sif.identity, source="docker"))
    (older,) = inventory(shelf.root)
    assert older == replace(
        sif, image="docker.io/team/tool:1", reference=older.reference, digest=None, made_at=older.made_at
    )
    shelf.clock.advance(30 * DAY_SECONDS)
    assert len(shelf.prune(unused_seconds=0.0).removed) == 1
    assert last_used(path) is None


def test_a_store_that_is_not_there_is_empty(tmp_path):
    assert prune(tmp_path / "no", PruneRules(unused_seconds=0.0), FakeClock()).removed == ()


@pytest.mark.parametrize("source", ["docker-archive", "oci-archive", "oci", "sandbox", "docker-daemon"])
def test_a_sif_of_which_the_origin_is_gone_stays(shelf, tmp_path, source):
    path = shelf.make("tool:1")
    note = json.loads(note_path(path).read_text())
    note_path(path).write_text(json.dumps({**note, "source": source, "digest": None}))
    shelf.clock.advance(90 * DAY_SECONDS)
    archives = tmp_path / "archives"
    engine = {}

    def pruned():
        rules = PruneRules(unused_seconds=1.0, most_bytes=0, archive_dir=archives)
        return prune(shelf.root, rules, shelf.clock, ask_engine=lambda _: engine.get("image"))

    report = pruned()
    assert report.removed == ()
    assert report.over_bytes > 0
    assert path.exists()
    (archives / "tool_1").mkdir(parents=True)
    (archives / "tool_1.tar").touch()
    (archives / "tool_1" / "oci-layout").touch()
    (shelf.root / "tool_1").mkdir()
    engine["image"] = EngineImage("sha256:x", None)
    assert [removal.sif.path for removal in pruned().removed] == [path]


def test_what_came_through_the_engine_from_a_registry_can_be_made_again(shelf):
    path = shelf.make("tool:1")
    note = json.loads(note_path(path).read_text())
    note_path(path).write_text(json.dumps({**note, "source": "docker-daemon"}))
    shelf.clock.advance(90 * DAY_SECONDS)
    assert len(shelf.prune(unused_seconds=1.0).removed) == 1
