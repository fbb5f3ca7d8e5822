"""Result hooks run one by one, each once; what the analysis did not write or Girder refuses is told."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from girder_client import GirderClient
from girder_worker.docker.transforms import VolumePath
from girder_worker.docker.transforms.girder import (
    GirderUploadVolumePathJobArtifact,
    GirderUploadVolumePathToFolder,
    GirderUploadVolumePathToItem,
)

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.celery_worker.message import DecodedTask
from girder_worker_slurm.cluster.tree_transfer import left_entries
from girder_worker_slurm.errors import GirderUnreachable, JobCancelled, OutputRefused, TurnOver
from girder_worker_slurm.girder import outputs, transfer_client
from girder_worker_slurm.girder.outputs import OutputPlace, after_failure, deliver, make_safe
from girder_worker_slurm.girder.upload_turn import UploadTurn
from girder_worker_slurm.records.record import Record
from tests.unit.slurm.http_girder import Mishap, http_girder


@pytest.fixture
def girder():
    with http_girder() as girder:
        yield girder


class Bench:
    def __init__(self, tmp_path, girder):
        self.run = tmp_path / "run" / "gw-1"
        (self.run / "volume").mkdir(parents=True)
        (tmp_path / "record").mkdir()
        self.record = Record.create(tmp_path / "record", {"task_id": "t1"}, worker_id="w1", at=0.0)
        self.client = GirderClient(apiUrl=girder.url)
        self.client.token = "secret"

    def write(self, name, data=b"data"):
        path = self.run / "volume" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def to_folder(self, name, folder="folder1", **kwargs):
        return GirderUploadVolumePathToFolder(VolumePath(name), folder, gc=self.client, **kwargs)

    def deliver(self, *hooks, check=lambda: None, progressed=lambda: None):
        decoded = DecodedTask((), {}, {}, None, hooks)
        return deliver(
            self.record,
            decoded,
            at=OutputPlace(self.run, self.run / "volume"),
            name="t1",
            api_url="",
            check=check,
            progressed=progressed,
        )

    def after_failure(self, *hooks):
        decoded = DecodedTask((), {}, {}, None, hooks)
        return after_failure(
            decoded,
            self.record,
            at=OutputPlace(self.run, self.run / "volume"),
            name="t1",
            api_url="",
            check=lambda: None,
        )


@pytest.fixture
def bench(tmp_path, girder):
    return Bench(tmp_path, girder)


def test_an_output_goes_to_its_folder_and_is_recorded(bench, girder):
    bench.write("out.csv")
    assert bench.deliver(bench.to_folder("out.csv")) == ["folder1"]
    assert girder.contents("out.csv") == [b"data"]
    assert bench.record.state.hooks_done == {0}
    assert bench.record.state.uploaded == {"0:out.csv"}


def test_an_output_goes_to_an_item(bench, girder):
    bench.write("out.csv")
    bench.deliver(GirderUploadVolumePathToItem(VolumePath("out.csv"), "item1", gc=bench.client))
    assert girder.contents("out.csv") == [b"data"]


def test_a_hook_that_is_done_is_not_run_again(bench, girder):
    bench.write("out.csv")
    bench.deliver(bench.to_folder("out.csv"))
    assert bench.deliver(bench.to_folder("out.csv")) == ["folder1"]
    assert girder.contents("out.csv") == [b"data"]


@pytest.mark.fault("Girder answers 500", phases=("outputs uploading",))
def test_a_worker_that_died_between_two_hooks_runs_only_the_second(bench, girder):
    bench.write("a", b"a")
    bench.write("b", b"b")
    girder.mishaps.append(Mishap("POST", "/file", status=503))
    hooks = (bench.to_folder("a"), bench.to_folder("b"))
    with pytest.raises(GirderUnreachable):
        bench.deliver(*hooks)
    bench.record = Record.load(bench.record.path, worker_id="w1")
    bench.deliver(bench.to_folder("a"), bench.to_folder("b"))
    assert (girder.contents("a"), girder.contents("b")) == ([b"a"], [b"b"])


def test_an_upload_whose_last_answer_was_lost_is_not_done_twice(bench, girder):
    bench.write("out.csv")
    girder.mishaps.append(Mishap("POST", "/file/chunk", is_done=True))
    with pytest.raises(GirderUnreachable):
        bench.deliver(bench.to_folder("out.csv"))
    bench.record = Record.load(bench.record.path, worker_id="w1")
    bench.deliver(bench.to_folder("out.csv"))
    assert girder.contents("out.csv") == [b"data"]


@pytest.mark.fault("Girder away", phases=("outputs uploading",))
def test_a_404_of_a_proxy_does_not_make_an_upload_one_that_was_finished(tmp_path):
    """Girder forgets a finished upload; a proxy knows none at all while Girder is away: the output was never sent."""
    with http_girder() as girder:
        bench = Bench(tmp_path, girder)
        bench.write("out.csv")
        girder.mishaps.append(Mishap("POST", "/file/chunk", status=502))
        with pytest.raises(GirderUnreachable):
            bench.deliver(bench.to_folder("out.csv"))
        girder.mishaps.append(Mishap("GET", "/file/offset", status=404, body=b"404 page not found"))
        with contextlib.suppress(GirderUnreachable):
            bench.deliver(bench.to_folder("out.csv"))
        bench.deliver(bench.to_folder("out.csv"))
        assert girder.contents("out.csv") == [b"data"]


class SlowRequests(FakeClock):
    """Each look at the clock costs a second, as a request to Girder may."""

    def monotonic(self):
        self.advance(1.0)
        return super().monotonic()


def _deliver_in_turns(bench, *names, others_wait):
    """How many turns it takes to bring a directory, and what was in Girder after each."""
    turns = []
    while True:
        turn = UploadTurn(SlowRequests(), lambda: None, others_wait)
        try:
            bench.deliver(*map(bench.to_folder, names), check=turn.check, progressed=turn.progressed)
        except TurnOver:
            turns.append(len(bench.record.state.uploaded))
            continue
        return [*turns, len(bench.record.state.uploaded)]


def test_a_job_with_many_outputs_lets_others_bring_theirs_in_between(bench, girder):
    for number in range(18):
        bench.write(f"out/part-{number}", b"%d" % number)
    turns = _deliver_in_turns(bench, "out", others_wait=lambda: True)
    assert len(turns) > 2
    assert turns == sorted(set(turns))  # each turn brings something
    assert all(girder.contents(f"part-{number}") == [b"%d" % number] for number in range(18))


def test_a_job_that_nobody_waits_for_brings_its_outputs_in_one_turn(bench, girder):
    for number in range(18):
        bench.write(f"out/part-{number}", b"%d" % number)
    assert _deliver_in_turns(bench, "out", others_wait=lambda: False) == [18]


def test_a_turn_that_took_long_to_find_its_place_is_as_long_there():
    """100,000 files are passed over in seconds, thousands of folders asked for in minutes: that must not be all it does."""
    clock = FakeClock()
    turn = UploadTurn(clock, lambda: None, lambda: True)
    clock.advance(100.0)
    turn.check()
    turn.progressed()
    clock.advance(99.0)
    turn.check()
    clock.advance(1.0)
    with pytest.raises(TurnOver):
        turn.check()


def test_a_directory_is_uploaded_file_by_file(bench, girder):
    bench.write("out/a", b"a")
    bench.write("out/b", b"b")
    bench.deliver(bench.to_folder("out"))
    assert sorted(name for name, _ in girder.files.values()) == ["a", "b"]


def test_an_output_that_was_not_written_is_told(bench):
    with pytest.raises(OutputRefused, match="did not write"):
        bench.deliver(bench.to_folder("out.csv"))


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.fault("Girder refuses an output (quota, rights)", phases=("outputs uploading",))
def test_an_output_that_girder_refuses_is_told_with_its_place(bench, girder, status):
    bench.write("out.csv")
    girder.mishaps.append(Mishap("POST", "/file", status=status))
    with pytest.raises(OutputRefused, match=str(bench.run / "volume")):
        bench.deliver(bench.to_folder("out.csv"))
    assert (bench.run / "volume" / "out.csv").exists()


def test_an_upload_that_a_proxy_does_not_let_through_is_refused_for_good(tmp_path):
    with http_girder() as girder:
        bench = Bench(tmp_path, girder)
        bench.write("out.csv")
        girder.mishaps.append(Mishap("POST", "/file/chunk", status=413, body=b"<h1>Too large</h1>"))
        with pytest.raises(OutputRefused):
            bench.deliver(bench.to_folder("out.csv"))


def test_a_cancel_stops_before_the_next_hook(bench, girder):
    bench.write("a")
    bench.write("b")

    def check():
        if girder.contents("a"):
            raise JobCancelled("in Girder")

    with pytest.raises(JobCancelled):
        bench.deliver(bench.to_folder("a"), bench.to_folder("b"), check=check)
    assert girder.contents("b") == []


def test_a_link_that_leads_out_of_the_outputs_is_not_followed(bench, girder, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (bench.run / "volume" / "out.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(OutputRefused):
        bench.deliver(bench.to_folder("out.csv"))
    assert girder.contents("out.csv") == []


def test_a_directory_of_another_owner_that_can_be_read_is_no_reason_to_refuse_outputs(tmp_path, monkeypatch):
    """Its mode was set although it need not be changed, which only its owner may."""
    (tmp_path / "volume").mkdir(mode=0o700)

    def chmod(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", chmod)
    assert make_safe(tmp_path / "volume") == []
    assert [head["path"] for head, _ in left_entries(tmp_path / "volume", inputs="inputs", begun_ns=0)] == [
        "volume"
    ]


def test_a_result_that_no_hook_gives_is_none(bench):
    assert bench.deliver(object()) == [None]


def test_after_a_failure_only_what_is_meant_for_it_is_kept(bench, girder):
    bench.write("log.txt", b"log")
    bench.write("out.csv", b"out")
    artifacts = [
        GirderUploadVolumePathJobArtifact(
            VolumePath(name), job_id="j", upload_on_exception=wanted, gc=bench.client
        )
        for name, wanted in (("log.txt", True), ("out.csv", False))
    ]
    problems = bench.after_failure(*artifacts, bench.to_folder("out.csv"))
    assert girder.contents("out.csv") == []
    assert all("out.csv" not in problem for problem in problems)


def test_a_hook_that_fails_after_a_failure_is_told_and_ends_nothing(bench):
    class Broken:
        def exception(self):
            raise ValueError("no more")

    assert bench.after_failure(Broken()) == ["Broken: no more"]


@pytest.mark.parametrize("size", [3, 4, 5, 8, 11])
@pytest.mark.fault("power cut between write and sync", phases=("outputs uploading",))
def test_a_power_cut_doubles_no_output(bench, girder, monkeypatch, size):
    for module in (outputs, transfer_client):
        monkeypatch.setattr(module, "CHUNK_BYTES", 4)
    state = bench.record.path / "state.jsonl"
    synced = state.stat().st_size
    sync = os.fsync

    def noting(descriptor):
        nonlocal synced
        sync(descriptor)
        synced = state.stat().st_size

    monkeypatch.setattr(os, "fsync", noting)
    bench.write("out.bin", b"0123456789a"[:size])
    bench.deliver(bench.to_folder("out.bin"))
    # All that was not synced is gone.
    os.truncate(state, synced)
    bench.record = Record.load(bench.record.path, worker_id="w1")
    assert bench.record.state.uploaded == set()
    bench.deliver(bench.to_folder("out.bin"))
    assert girder.contents("out.bin") == [b"0123456789a"[:size]]
