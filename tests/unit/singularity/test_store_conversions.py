"""One conversion for all who want an image, whoever is stopped, fails or loses the lease."""

from __future__ import annotations

import threading

import pytest

from girder_worker_singularity.errors import (
    ConversionFailed,
    ConversionStopped,
)
from tests.unit.singularity.store_world import IMAGE, names


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
