"""Behaviour that is wanted and not there yet: each test fails until its bug is mended, and then moves to its module."""

from __future__ import annotations

import json
import threading

import pytest
from girder_worker.docker.transforms.girder import GirderFileIdToVolume
from slicer_cli_web.girder_worker_plugin.direct_docker_run import DirectGirderFileIdToVolume

from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.budget import CallBudget
from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions
from girder_worker_slurm.cluster.slurm_commands import option_arguments, parse_scontrol
from girder_worker_slurm.errors import (
    ClusterUnreachable,
    GirderUnreachable,
    InputUnavailable,
    NotSupported,
    OutputRefused,
    OwnershipLost,
    RecordDamaged,
    SettingsInvalid,
)
from girder_worker_slurm.girder.job_updates import JobUpdates
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.girder.output_text import read_output
from girder_worker_slurm.job.state import GirderJob
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.settings import load_settings
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.http_girder import Mishap, http_girder
from tests.unit.slurm.site import Site, message_of
from tests.unit.slurm.test_inputs import Bench as InputBench
from tests.unit.slurm.test_outputs import Bench as OutputBench


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_the_jobs_last_word_is_not_lost_when_the_disk_is_full_for_a_moment(site):
    """Supervisor._advance empties the inbox before it has recorded it: an OSError then loses `ended` for good."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    record = site.task()
    site.run_until(lambda: site.state().started is not None)
    site.cluster.finish(site.state().slurm_job_id)
    log, away = record.path / "state.jsonl", record.path / "state.away"
    log.rename(away)
    log.mkdir()  # as a full disk: it cannot be written
    for _ in range(4):
        try:
            site.turn()
        except OSError:
            site.clock.advance(1.0)
    log.rmdir()
    away.rename(log)
    site.run_to_the_end()
    assert site.shown().status == 3, site.state().verdict


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


def test_an_expired_token_is_no_unexpected_error(site, caplog):
    """flush() asks for the log to settle a doubt outside of its `except AccessRefused`."""
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None and site.job().announced)
    site.girder.refuses_access = True
    (site.runs.path(site.state().token) / "output.log").write_bytes(b"new\n")
    site.run_for(30)
    assert "unexpected error" not in caplog.text


def test_a_worker_that_lost_its_lease_to_one_of_the_same_name_loses_its_jobs(tmp_path):
    """A worker that starts takes its own records up at their epoch: the frozen one of that name still owns them."""
    clock = FakeClock()
    frozen = JobsRoot(tmp_path / "jobs", "w1")
    frozen.prepare()
    frozen.lease(clock)
    record = Record.create(frozen.records, message_of("t1"), worker_id="w1", at=0.0)
    successor = JobsRoot(tmp_path / "jobs", "w1")
    successor.lease(clock, wait_seconds=200.0)
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


@pytest.mark.parametrize(
    "entry",
    [
        {"event": "submitted"},
        {"event": "verdict", "outcome": "of a newer version", "code": "", "sentence": ""},
        {"event": "attempt", "number": "x"},
    ],
)
def test_a_record_that_cannot_be_added_up_does_not_keep_the_worker_from_starting(tmp_path, entry):
    """Record.load() adds up outside of its try: KeyError and ValueError leave own_records() and end the start."""
    root = JobsRoot(tmp_path / "jobs", "w1")
    root.prepare()
    bad = Record.create(root.records, message_of("bad"), worker_id="w1", at=0.0)
    Record.create(root.records, message_of("good"), worker_id="w1", at=0.0)
    with (bad.path / "state.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    with pytest.raises(RecordDamaged):
        Record.load(bad.path, worker_id="w1")
    assert [record.task_id for record in root.own_records()] == ["good"]


def test_a_crash_before_the_first_position_is_saved_loses_and_repeats_nothing(tmp_path):
    """LogFeed._load() cuts girder.log only where there is a log.json."""
    (tmp_path / "girder.log").write_bytes(b"one\n")  # written; the worker died before log.json was
    output = tmp_path / "output.log"
    output.write_bytes(b"one\ntwo\n")
    feed = LogFeed(tmp_path, output, limit_bytes=1000)
    feed.read(final=True)
    assert feed.next_update().text == "one\ntwo\n"


def test_a_line_that_is_the_same_as_the_one_before_is_not_lost_in_a_doubt(tmp_path):
    """settle_doubt() compares only ends: "." after "." seems to have arrived."""
    output = tmp_path / "output.log"
    output.write_bytes(b".\n")
    feed = LogFeed(tmp_path, output, limit_bytes=1000)
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


def test_a_password_is_not_in_an_error_about_the_settings(tmp_path):
    """pydantic's `input` of a model validator is the whole input, broker address included."""
    file = tmp_path / "worker.local.cfg"
    file.write_text("[celery]\nbroker = amqp://user:geheim@host/\nqueues = local\n")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings((file,), {})
    assert "geheim" not in str(caught.value)


def test_a_password_is_not_in_an_error_about_a_broken_line(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[celery]\nbroker: amqp://user:geheim@host/\n")
    with pytest.raises(SettingsInvalid) as caught:
        load_settings((file,), {})
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("name", ["outpu", "job-nam", "wra", "chdi", "expor", "ui", "arra"])
def test_a_reserved_option_cannot_be_chosen_by_the_beginning_of_its_name(name):
    """sbatch takes abbreviations: `--outpu=/x` is `--output=/x`, and what comes later wins."""
    with pytest.raises(ValueError, match="cannot be chosen"):
        option_arguments([(name, "x")])


def test_a_comment_cannot_pretend_another_state():
    """parse_scontrol() lets later fields win, and the comment of a job comes later."""
    line = "JobId=7 JobName=gw-1 JobState=FAILED Reason=None ExitCode=3:0 Comment=x JobState=COMPLETED ExitCode=0:0\n"
    detail = parse_scontrol(line)
    assert (detail.state, detail.exit_code) == ("FAILED", 3)


def test_a_listing_whose_middle_was_left_out_is_no_listing():
    """CommandResult.truncated is never looked at: a long queue would show jobs as missing."""

    class Cutting(FakeCommandRunner):
        def run(self, argv, **how):
            result = super().run(argv, **how)
            return type(result)(result.argv, 0, result.stdout, "", truncated=True)

    clock = FakeClock()
    runner = Cutting({"squeue": FakeAnswer(stdout="1|RUNNING|None|gw-1\n")})
    cluster = CommandCluster(runner, clock, CallBudget(50.0, clock), CommandOptions(users=("u",)))
    with pytest.raises(ClusterUnreachable):
        cluster.snapshot()


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
        DirectGirderFileIdToVolume("f1", filename="a", direct_file_path=str(tmp_path / "asset"), gc=bench.client)
        for _ in range(2)
    ]
    task = bench.stage(*inputs)
    places = [mount.destination for mount in task.mounts]
    assert len(places) == len(set(places))


def test_an_answer_that_is_no_json_is_girder_unreachable(girder):
    """A proxy's page with 200 is a bug to the supervisor: in admit() the job ends with ERROR for it."""
    girder.mishaps.append(Mishap("PUT", "/job", status=200, body=b"<html>Down for maintenance</html>"))
    with pytest.raises(GirderUnreachable):
        JobUpdates().update(GirderJob(f"{girder.url}/job/7", "t"))


def test_an_empty_answer_is_girder_unreachable(girder):
    girder.mishaps.append(Mishap("PUT", "/job", status=200, body=b"null"))
    with pytest.raises(GirderUnreachable):
        JobUpdates().update(GirderJob(f"{girder.url}/job/7", "t"))


def test_an_allowed_directory_that_is_not_absolute_does_not_end_the_job(tmp_path, girder):
    """os.path.commonpath refuses to mix absolute and relative paths: ValueError, an internal error of the job."""
    girder.files["f1"] = ("a", b"x")
    (tmp_path / "asset").write_bytes(b"x")
    bench = InputBench(tmp_path / "b", girder.url)
    wanted = DirectGirderFileIdToVolume("f1", filename="a", direct_file_path=str(tmp_path / "asset"), gc=bench.client)
    assert bench.stage(wanted, rules={"direct_paths": ("assetstore",)}).arguments
