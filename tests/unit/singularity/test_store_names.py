"""Whose a SIF is: names that several images have, files put there by hand, and adoption."""

from __future__ import annotations

import pytest

from girder_worker_singularity.errors import (
    ImageNotInStore,
    SifDamaged,
)
from tests.support.sif_files import sif_bytes
from tests.unit.singularity.store_world import DIGEST, IMAGE


def test_a_sif_put_there_by_hand_counts_as_its_image(world):
    world.put("team_tool_1.sif")
    assert world.store().find(IMAGE).path.name == "team_tool_1.sif"
    assert not world.store().ensure(IMAGE, policy="never").converted


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
