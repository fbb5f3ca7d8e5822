"""Mistakes that were found once and must not come back, each in the words of what was wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time

import jsonpickle
import pytest
from girder_worker.docker.transforms.girder import GirderFileIdToVolume
from slicer_cli_web.girder_worker_plugin.direct_docker_run import DirectGirderFileIdToVolume

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.errors import (
    InputUnavailable,
    NotSupported,
    OutputRefused,
    OwnershipLost,
)
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.girder.output_text import read_output
from girder_worker_slurm.job.retention import Retention
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.fake_girder import GirderJobOfFake
from tests.unit.slurm.http_girder import http_girder
from tests.unit.slurm.site import broker_message, message_of
from tests.unit.slurm.test_inputs import Bench as InputBench
from tests.unit.slurm.test_intake import Bench as IntakeBench
from tests.unit.slurm.test_outputs import Bench as OutputBench
from tests.unit.slurm.test_script import Bench as ScriptBench


def test_a_cancel_that_got_lost_is_sent_again(site):
    """Nothing wakes a silent job after _CANCEL_AGAIN_SECONDS; it waits for the next status check, ten minutes."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.lost_cancels = 1
    site.revoked.add("t1")
    site.run_to_the_end(seconds=60)
    assert site.shown().status == 5


def test_a_job_that_ignores_its_cancel_is_killed_in_the_end(site):
    """`cancel_sent_at` is moved on by each cancel, so that it is never `_KILL_AFTER_SECONDS` ago."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.cluster.obeys_term = False
    site.task()
    site.run_until(lambda: site.state().started is not None)
    site.revoked.add("t1")
    site.run_to_the_end(seconds=180)
    assert site.calls("kill")


@pytest.mark.parametrize("word", ["STAGE_OUT", "SIGNALING", "STOPPED", "SOMETHING_NEW"])
def test_a_state_that_is_no_end_does_not_make_the_worker_ask_without_a_pause(site, word):
    """judge() knows five live states by name; any other gives no verdict and no Later, and runs again at once."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    job_id = site.state().slurm_job_id
    site.cluster.finish(job_id, exit_code=137)
    site.cluster.end(job_id, word)
    before = len(site.calls("describe"))
    site.run_for(5)
    assert len(site.calls("describe")) - before <= 11


@pytest.mark.parametrize("word", ["REQUEUED", "REQUEUE_HOLD", "SOMETHING_NEW"])
def test_a_job_that_has_not_ended_keeps_its_right_to_start(site, word):
    """judge() takes the claim in every state that it does not know by name: the job can never run then."""
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    job_id = site.state().slurm_job_id
    site.cluster.end(job_id, "FAILED")
    site.run_until(lambda: site.job().final_since > 0, steps_slurm=False)
    site.cluster.end(job_id, word)
    site.run_for(6)
    assert site.runs.claimed_by(site.state().token) == ""


@pytest.mark.fault("worker frozen, another takes over", phases=("submitted", "running"))
def test_a_worker_that_lost_its_lease_to_one_of_the_same_name_loses_its_jobs(tmp_path, monkeypatch):
    """A worker that starts takes its own records up at their epoch: the frozen one of that name still owns them."""
    clock = FakeClock()
    frozen = JobsRoot(tmp_path / "jobs", "w1")
    frozen.prepare()
    with (
        monkeypatch.context() as elsewhere
    ):  # on this host the successor would see that it lives, and not start
        elsewhere.setattr("socket.gethostname", lambda: "another-host")
        frozen.lease(clock)
    record = Record.create(frozen.records, message_of("t1"), worker_id="w1", at=0.0)
    successor = JobsRoot(tmp_path / "jobs", "w1")
    successor.lease(clock)
    (taken,) = successor.own_records()
    taken.append("cancel", why="x")
    with pytest.raises(OwnershipLost):
        record.append("cancel", why="y")


def test_workers_that_start_together_agree_on_the_id_of_the_root(tmp_path):
    """identify() looks and then replaces: of two first starts one goes on with an id that is not in root.json."""
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    gate = threading.Barrier(8)
    seen = []

    def identify():
        gate.wait()
        seen.append(root.identify("amqp://h/", ["celery"]))

    for _ in range(20):
        (root.path / "root.json").unlink(missing_ok=True)
        seen.clear()
        threads = [threading.Thread(target=identify) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 8
        assert len(set(seen)) == 1


def test_a_line_that_is_the_same_as_the_one_before_is_not_lost_in_a_doubt(tmp_path):
    """settle_doubt() compares only ends: "." after "." seems to have arrived."""
    output = tmp_path / "output.log"
    output.write_bytes(b".\n")
    feed = LogFeed(tmp_path, output, RunDirectories(tmp_path), limit_bytes=1000)
    feed.read()
    feed.update_arrived(feed.next_update())
    output.write_bytes(b".\n.\n")
    feed.read()
    feed.next_update()  # goes out, but never arrives
    feed.settle_doubt(".\n")
    assert feed.has_pending


def test_a_start_element_that_comes_in_pieces_leaves_no_tags_in_the_log():
    """_open_element() looks behind the last whole element only, and that may stand inside an open filter-start."""
    first = b"<filter-start>\n<filter-name>Blur</filter-name>\n"
    piece = read_output(first)
    rest = read_output(first[piece.consumed :] + b"</filter-start>\nx\n", final=True)
    assert piece.text + rest.text == "x\n"


def test_the_line_end_after_an_element_goes_with_it_also_when_it_comes_later():
    """Cut between an element and its line end, the log gets an empty line for each progress."""
    piece = read_output(b"a\n<filter-progress>0.5</filter-progress>")
    rest = read_output(b"a\n<filter-progress>0.5</filter-progress>"[piece.consumed :] + b"\nb\n", final=True)
    assert piece.text + rest.text == "a\nb\n"


@pytest.fixture
def girder():
    with http_girder() as girder:
        yield girder


@pytest.mark.parametrize("name", ["../nonce", "../../../record/t1/message.json"])
def test_an_output_that_climbs_out_of_its_directory_is_not_uploaded(tmp_path, girder, name):
    """Security: the name is what a user typed; `..` leads to other jobs' tokens, which the worker may read."""
    bench = OutputBench(tmp_path, girder)
    (bench.run / "nonce").write_bytes(b"secret")
    (bench.record.path / "message.json").write_bytes(b"secret")
    path = bench.run / "volume" / name
    assert path.exists() or "record" in name
    with pytest.raises(OutputRefused):
        bench.deliver(bench.to_folder(name))
    assert not girder.files


@pytest.mark.parametrize("name", ["../../../../escaped", "/{tmp}/escaped"])
def test_an_input_whose_name_climbs_out_of_its_directory_is_not_written_there(tmp_path, girder, name):
    """Security: a Girder file may have any name; it is joined to the directory as it is."""
    name = name.replace("/{tmp}", str(tmp_path))
    girder.files["f1"] = (name, b"evil")
    bench = InputBench(tmp_path / "a" / "b", girder.url)
    with pytest.raises((InputUnavailable, NotSupported)):
        bench.stage(GirderFileIdToVolume("f1", filename=name, gc=bench.client))
    written = [path for path in tmp_path.rglob("*") if path.is_file() and bench.run not in path.parents]
    assert written == []


def test_one_file_as_two_inputs_is_mounted_once(tmp_path, girder):
    """The same slide for two parameters gives two mounts of one destination; merge_mounts is not asked."""
    (tmp_path / "asset").write_bytes(b"x")
    bench = InputBench(tmp_path / "b", girder.url)
    inputs = [
        DirectGirderFileIdToVolume(
            "f1", filename="a", direct_file_path=str(tmp_path / "asset"), gc=bench.client
        )
        for _ in range(2)
    ]
    task = bench.stage(*inputs)
    places = [mount.destination for mount in task.mounts]
    assert len(places) == len(set(places))


def test_an_allowed_directory_that_is_not_absolute_does_not_end_the_job(tmp_path, girder):
    """os.path.commonpath refuses to mix absolute and relative paths: ValueError, an internal error of the job."""
    girder.files["f1"] = ("a", b"x")
    (tmp_path / "asset").write_bytes(b"x")
    bench = InputBench(tmp_path / "b", girder.url)
    wanted = DirectGirderFileIdToVolume(
        "f1", filename="a", direct_file_path=str(tmp_path / "asset"), gc=bench.client
    )
    assert bench.stage(wanted, rules={"direct_paths": ("assetstore",)}).arguments


def test_one_message_that_cannot_be_written_does_not_end_the_taking_of_all_others(tmp_path):
    """A lone surrogate (py-amqp lets them through) is a UnicodeEncodeError: the writer's thread ends silently."""
    bench = IntakeBench(tmp_path)
    bench.intake.start()
    poison = broker_message([[], {}, {}], headers={"id": "bad", "task": "x", "argsrepr": "\ud800"})
    bench.intake.take(poison, lambda: bench.seen.append("bad"), lambda: bench.seen.append("bad"))
    until = time.monotonic() + 2
    while bench.intake._thread.is_alive() and not bench.seen and time.monotonic() < until:
        time.sleep(0.005)
    assert bench.intake._thread.is_alive()
    bench.take("good")
    while not bench.root.has("good"):
        assert time.monotonic() < until
        time.sleep(0.005)
    bench.intake.stop()


def test_a_log_that_cannot_be_removed_does_not_keep_all_others_for_ever(tmp_path):
    """Retention.remove_old() ends at the first OSError, and begins with the same record an hour later."""
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    runs = RunDirectories(root.path)
    runs.prepare()
    names = [f"t{number}" for number in range(12)]
    for name in names:
        record = Record.create(root.records, message_of(name), worker_id="w1", at=0.0)
        log = tmp_path / f"{name}.log"
        record.append("attempt", number=1, token=f"gw-{name}", nonce="n", log_path=str(log))
        root.end(record)
    (tmp_path / "t5.log").mkdir()  # nobody can unlink a directory
    clock = FakeClock(now=4_000_000_000.0)
    retention = Retention(root, lambda _: runs, clock, keep_days=7, keep_failed_days=30)
    for _ in range(3):
        with contextlib.suppress(OSError):
            retention.remove_old()
        clock.advance(4000.0)
    assert {path.name for path in root.ended.iterdir()} <= {"t5"}


class BrokenHook:
    """A result hook that fails for good, as one of another package's version might."""

    def transform(self, *_args, **_kwargs):
        raise KeyError("no such attribute in this version")


def test_a_result_hook_that_fails_for_good_ends_the_job(site):
    """_after_bug() tries a step after the submission for ever: RUNNING in Girder until an administrator sees it."""
    hook = json.loads(jsonpickle.encode(BrokenHook()))
    message = message_of("t1", hooks=[hook], image="image:1", container_args=[], pull_image=False)
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    record = Record.create(site.root.records, message, worker_id="w1", at=0.0)
    site.supervisor.accept(record)
    site.run_to_the_end(seconds=1800)
    assert site.shown().status == 4


def test_a_deleted_job_that_was_cancelled_before_does_not_fill_its_record(site):
    """notice_deleted() appends `cancel` each time, because the first reason stays: one line per answer of Girder."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.cluster.obeys_term = False
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    site.revoked.add("t1")
    site.run_for(5)
    del site.girder.jobs["job-t1"]
    log = site.runs.path(site.state().token) / "output.log"
    for number in range(20):
        with log.open("a") as file:
            file.write(f"{number}\n")
        site.run_for(3)
    assert site.entries().count("cancel") <= 2


@pytest.mark.fault("disk full", phases=("message received",))
def test_a_message_that_cannot_be_kept_stays_with_the_broker_and_the_consumer_goes_on(tmp_path):
    """UnhandledMessages._keep() lets the OSError of a full disk into Celery's event loop."""
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    root.unhandled.rmdir()
    root.unhandled.write_text("as a full disk")
    unhandled = UnhandledMessages(root, None, FakeClock(), lambda work: work())
    answers = []
    message = broker_message([[], {}, {}], headers={"id": "t1", "task": "not.installed"})
    message.ack = lambda: answers.append("ack")
    message.requeue = lambda: answers.append("requeue")
    message.reject = lambda requeue=False: answers.append("requeue" if requeue else "reject")
    unhandled.unknown_task(message)
    assert "ack" not in answers


def test_the_exit_code_of_a_container_is_not_lost_when_it_gets_the_signal_as_well(tmp_path):
    """bash 5.2: `wait` for a child that it reaped while a trap ran gives -1; Slurm signals script and container."""
    script = 'trap "exit 5" TERM; echo ready; while :; do sleep 0.005; done'
    codes = []
    for number in range(12):
        bench = ScriptBench(tmp_path / str(number), ("/bin/bash", "-c", script))
        process = bench.start()
        bench.wait_for(lambda bench=bench: bench.log.exists() and bench.log.read_text() != "", "the start")
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)
        codes.append(bench.events()["ended"].fields["exit_code"])
    assert codes == [5] * 12


@pytest.mark.parametrize("task", [["a", "list"], {"a": 1}])
def test_a_header_that_celery_stumbles_over_is_kept_like_any_broken_message(tmp_path, task):
    """Celery looks the task up in a dict; what cannot be hashed ended the consumer, at each restart again."""
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    unhandled = UnhandledMessages(root, None, FakeClock(), lambda work: work())
    message = broker_message([[], {}, {}], headers={"id": "t1", "task": task})
    message.acknowledged = False
    message.ack = lambda: setattr(message, "acknowledged", True)
    unhandled.guarded(lambda message: {}[message.headers["task"]])(message)
    assert message.acknowledged
    assert "TypeError" in (root.unhandled / "t1" / "reason.txt").read_text()


def test_an_error_after_a_message_was_taken_is_logged_and_ends_nothing(tmp_path, caplog):
    unhandled = UnhandledMessages(JobsRoot(tmp_path / "jobs", "w1"), None, FakeClock(), lambda work: work())
    message = broker_message([[], {}, {}], headers={"id": "t1", "task": "x"})
    message.acknowledged = True
    unhandled.guarded(lambda message: {}[message.headers["task"]])(message)
    assert "KeyError" in caplog.text


@pytest.mark.fault("job id given out again", phases=("running",))
def test_a_word_of_another_slurm_job_ends_nothing(site):
    """A second submission that was turned away knows nonce and token too; only the one with the claim runs."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    token = site.state().token
    event = {
        "token": token,
        "nonce": site.state().nonce,
        "kind": "ended",
        "slurm_job_id": "9999",
        "exit_code": 0,
        "cause": "exit",
    }
    (site.runs.spool / f"{token}.ended.9999.0.json").write_text(json.dumps(event))
    site.run_for(5)
    assert site.state().ended is None
