"""Claims decide who runs; events count only when they are whole and ours."""

from __future__ import annotations

import errno
import json
import os
import threading

import pytest

from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.job.state import Outcome

EVENT = {"token": "gw-1", "kind": "ended", "slurm_job_id": "7", "nonce": "n", "exit_code": 0}


@pytest.fixture
def runs(tmp_path):
    runs = RunDirectories(tmp_path / "jobs")
    runs.prepare()
    runs.create("gw-1")
    return runs


def spool(runs, name="gw-1.ended.7.0.json", content=None):
    path = runs.spool / name
    path.write_text(content if content is not None else json.dumps(EVENT))
    return path


def test_directories_and_files_are_private(runs):
    runs.prepare()
    runs.write("gw-1", "nonce", b"secret")
    for path in (runs.root, runs.spool, runs.path("gw-1"), runs.path("gw-1") / "volume"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (runs.path("gw-1") / "nonce").stat().st_mode & 0o777 == 0o600


def test_a_run_directory_is_made_once(runs):
    with pytest.raises(FileExistsError):
        runs.create("gw-1")


def test_a_file_is_written_as_a_whole_and_again(runs):
    runs.write("gw-1", "job.slurm", b"one", mode=0o700)
    path = runs.write("gw-1", "job.slurm", b"two", mode=0o700)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o700
    assert {entry.name for entry in runs.path("gw-1").iterdir()} == {"volume", "scratch", "job.slurm"}


def test_nobody_has_the_claim_at_first(runs):
    assert (runs.claimed_by("gw-1"), runs.claimant("gw-1")) == ("", "")


def test_the_worker_takes_a_free_claim_and_keeps_it(runs):
    assert runs.claim("gw-1", "cancelled")
    assert runs.claim("gw-1", "again")
    assert (runs.claimed_by("gw-1"), runs.claimant("gw-1")) == ("worker", "")


def test_the_worker_does_not_get_the_claim_of_a_job(runs):
    (runs.path("gw-1") / "claim").write_text('{"by":"job","slurm_job_id":"7"}')
    assert not runs.claim("gw-1", "cancelled")
    assert (runs.claimed_by("gw-1"), runs.claimant("gw-1")) == ("job", "7")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_claim_that_cannot_be_read_yet_is_somebody_elses(runs, text):
    (runs.path("gw-1") / "claim").write_text(text)
    assert not runs.claim("gw-1", "cancelled")


def test_nothing_can_start_in_a_directory_that_is_gone(runs):
    assert runs.claim("gw-none", "cancelled")


def test_of_many_that_claim_at_once_all_workers_see_the_same(runs):
    gate = threading.Barrier(8)
    seen = []

    def claim():
        gate.wait()
        seen.append(runs.claim("gw-1", "x"))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert runs.claimed_by("gw-1") == "worker"


def test_events_are_read_and_kept_with_their_run(runs):
    spool(runs)
    (event,) = runs.events()
    assert (event.token, event.kind, event.slurm_job_id, event.nonce) == ("gw-1", "ended", "7", "n")
    runs.keep(event)
    assert runs.events() == []
    (kept,) = runs.kept_events("gw-1")
    assert kept.fields == event.fields


def test_an_event_of_a_run_that_is_gone_is_removed(runs):
    spool(runs, "gw-gone.ended.7-0.json", content=json.dumps({**EVENT, "token": "gw-gone"}))
    (event,) = runs.events()
    runs.keep(event)
    assert list(runs.spool.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", '"x"', json.dumps({"token": "gw-1"}), " " * 70_000 + json.dumps(EVENT)]
)
def test_what_is_no_event_is_left_alone(runs, content):
    path = spool(runs, content=content)
    assert runs.events() == []
    assert path.exists()


def test_a_draft_or_another_file_is_no_event(runs):
    spool(runs, name=".gw-1.ended.7.0.123")
    spool(runs, name=".hidden.json")
    spool(runs, name="gw-1.ended.txt")
    assert runs.events() == []


def test_links_and_pipes_are_no_events(runs, tmp_path):
    (tmp_path / "real.json").write_text(json.dumps(EVENT))
    (runs.spool / "link.json").symlink_to(tmp_path / "real.json")
    os.mkfifo(runs.spool / "pipe.json")
    assert runs.events() == []


def test_a_file_of_another_user_is_no_event(tmp_path):
    runs = RunDirectories(tmp_path, uid=os.getuid() + 1)
    runs.prepare()
    spool(runs)
    assert runs.events() == []


def test_data_is_removed_even_without_permission_and_the_log_stays(runs):
    run = runs.path("gw-1")
    locked = run / "scratch" / "locked"
    locked.mkdir(parents=True)
    (locked / "file").write_text("x")
    locked.chmod(0o500)
    (run / "output.log").write_text("log")
    runs.remove_data("gw-1")
    assert {path.name for path in run.iterdir()} == {"output.log"}
    runs.remove("gw-1")
    assert not run.exists()
    runs.remove("gw-1")


def test_what_a_link_in_the_data_leads_to_is_not_removed(runs, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (runs.path("gw-1") / "volume" / "link").symlink_to(tmp_path / "precious")
    runs.remove_data("gw-1")
    assert (tmp_path / "precious" / "file").exists()


def test_a_directory_in_the_spool_does_not_hide_all_events(tmp_path):
    runs = RunDirectories(tmp_path)
    runs.prepare()
    (runs.spool / "a.json").mkdir()
    event = {"token": "gw-1", "kind": "ended", "slurm_job_id": "7", "nonce": "n"}
    (runs.spool / "gw-1.ended.1.json").write_text(json.dumps(event))
    assert [seen.token for seen in runs.events()] == ["gw-1"]


def test_nothing_is_made_where_the_file_system_is_not_mounted(tmp_path):
    runs = RunDirectories(tmp_path / "jobs")
    with pytest.raises(FileNotFoundError):
        runs.events()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_somebody_removed_is_made_again(site):
    """No job could leave a word any more, and each ended as an error, also one whose analysis had succeeded."""
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    site.runs.spool.rmdir()
    site.run_for(1)
    assert site.runs.spool.stat().st_mode & 0o777 == 0o700
    site.run_to_the_end()
    assert site.state().verdict.outcome is Outcome.SUCCESS


class RememberingMount:
    """A directory whose mount shows what nodes made there only once the directory's times have been set on this side."""

    def __init__(self, monkeypatch, directory):
        self._directory, self._late = directory, {}
        self._utime = os.utime
        monkeypatch.setattr(os, "utime", self._ask)

    def node_writes(self, name, text):
        self._late[name] = text

    def _ask(self, path, *arguments, **how):
        self._utime(path, *arguments, **how)
        if path == self._directory:
            for name, text in self._late.items():
                (self._directory / name).write_text(text)


def test_an_event_that_the_mount_does_not_show_is_there_when_it_is_asked_anew(site, monkeypatch):
    mount = RememberingMount(monkeypatch, site.runs.spool)
    word = {"token": "gw-1", "kind": "ended", "slurm_job_id": "7", "nonce": "n"}
    mount.node_writes("gw-1.ended.7.0.json", json.dumps(word))
    assert site.runs.events() == []
    assert [event.token for event in site.runs.events(anew=True)] == ["gw-1"]


def test_a_claim_that_the_mount_does_not_show_is_seen(site, monkeypatch):
    """One that seemed to be missing led to a second submission, with a line in the log about a lost job."""
    run = site.runs.create("gw-1")
    mount = RememberingMount(monkeypatch, run)
    assert site.runs.claimed_by("gw-1") == ""
    mount.node_writes("claim", '{"by": "job", "slurm_job_id": "7"}')
    assert (site.runs.claimed_by("gw-1"), site.runs.claimant("gw-1")) == ("job", "7")


def test_a_directory_that_cannot_be_asked_anew_is_read_as_it_is(site, monkeypatch):
    def refused(*_arguments, **_how):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refused)
    assert site.runs.events(anew=True) == []


def test_a_spool_that_cannot_be_made_again_is_told_of(site, tmp_path):
    """A link, say, to a file system that is not mounted: nothing of any job would be heard, and nobody would know."""
    site.runs.spool.rmdir()
    site.runs.spool.symlink_to(tmp_path / "not mounted")
    with pytest.raises(OSError, match="spool"):
        site.runs.spooled()
    assert [path.name for path in site.runs.root.parent.glob(".spool*")] == []
    (tmp_path / "not mounted").mkdir()
    assert site.runs.spooled() == []


def test_a_spool_is_made_again_where_the_mount_remembers_that_it_is_there(site, monkeypatch):
    make = os.mkdir
    site.runs.spool.rmdir()

    def remembered(path, *arguments, **how):
        if path == site.runs.spool:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        make(path, *arguments, **how)

    monkeypatch.setattr(os, "mkdir", remembered)
    assert site.runs.events(anew=True) == []
    assert site.runs.spool.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in site.runs.root.parent.glob(".spool*")] == []
