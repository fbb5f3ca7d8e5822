"""What every `RunFiles` promises. A module that imports all of it and has a fixture `lab` runs it."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from girder_worker_slurm.girder.outputs import make_safe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from girder_worker_slurm.cluster.run_files import RunFiles

__all__ = [
    "Lab",
    "test_a_file_is_written_as_a_whole_and_read_again",
    "test_a_log_is_read_by_pieces_and_is_empty_while_it_is_not_there",
    "test_a_run_directory_is_made_once_and_for_its_user_alone",
    "test_an_event_is_read_whole_and_kept_in_its_run_directory",
    "test_an_input_that_nothing_was_written_to_does_not_count_as_new",
    "test_data_are_removed_and_log_and_script_stay",
    "test_events_of_tokens_that_are_not_wanted_stay_where_they_are",
    "test_inputs_reach_the_job_and_outputs_the_worker",
    "test_of_worker_and_job_one_has_the_claim",
    "test_outputs_that_were_made_unreadable_are_read_all_the_same",
    "test_what_is_gone_is_no_error_when_it_is_removed",
    "test_whether_a_file_can_be_read_is_said_for_the_jobs_user",
]

NO_CHECK: Callable[[], None] = lambda: None  # noqa: E731


@dataclass
class Lab:
    """Run files, and a hand that does in them what jobs do."""

    runs: RunFiles
    #: Runs a line of bash as the jobs' user.
    job: Callable[[str], str]
    #: A directory that the jobs' user can see.
    shared: Path

    def token(self) -> str:
        """A new run directory."""
        token = f"gw-suite-{uuid.uuid4().hex[:10]}"
        self.runs.create(token)
        return token

    def event(self, token: str, kind: str = "ended") -> None:
        """What a job script leaves in the spool."""
        words = {"token": token, "kind": kind, "slurm_job_id": "7", "nonce": "n", "exit_code": 0}
        name = f"{token}.{kind}.7.0.json"
        self.job(f"printf %s '{json.dumps(words)}' >{self.runs.spool}/{name}")


def test_a_run_directory_is_made_once_and_for_its_user_alone(lab: Lab) -> None:
    token = lab.token()
    with pytest.raises(FileExistsError):
        lab.runs.create(token)
    run = lab.runs.path(token)
    seen = lab.job(f"stat -c %a {run} {run}/volume {run}/scratch {run.parent} {lab.runs.spool}")
    assert seen.split() == ["700"] * 5


def test_a_file_is_written_as_a_whole_and_read_again(lab: Lab) -> None:
    token = lab.token()
    path = lab.runs.write(token, "job.slurm", b"one", mode=0o700)
    lab.runs.write(token, "job.slurm", b"two\0\xff" * 500_000, mode=0o700)
    assert lab.runs.read(token, "job.slurm") == b"two\0\xff" * 500_000
    lab.runs.write(token, "nonce", b"secret")
    assert lab.job(f"stat -c %a {path} {path.with_name('nonce')}; ls -A {path.parent}").split() == [
        *("700", "600"),
        *("job.slurm", "nonce", "scratch", "volume"),
    ]
    with pytest.raises(FileNotFoundError):
        lab.runs.read(token, "nothing")


def test_of_worker_and_job_one_has_the_claim(lab: Lab) -> None:
    mine, theirs = lab.token(), lab.token()
    assert (lab.runs.claimed_by(mine), lab.runs.claimant(mine)) == ("", "")
    assert lab.runs.claim(mine, "cancelled")
    assert lab.runs.claim(mine, "again")
    assert (lab.runs.claimed_by(mine), lab.runs.claimant(mine)) == ("worker", "")
    run = lab.runs.path(theirs)
    lab.job(f"""cd {run} && echo '{{"by":"job","slurm_job_id":"48"}}' >c && ln c claim""")
    assert not lab.runs.claim(theirs, "cancelled")
    assert (lab.runs.claimed_by(theirs), lab.runs.claimant(theirs)) == ("job", "48")
    assert lab.runs.claim("gw-suite-gone", "nothing can start there")


def test_an_event_is_read_whole_and_kept_in_its_run_directory(lab: Lab) -> None:
    token = lab.token()
    assert [event for event in lab.runs.events() if event.token == token] == []
    lab.event(token)
    lab.job(f"cd {lab.runs.spool} && echo half >{token}.started.7.0.json && ln -s /etc/passwd {token}.x.json")
    (event,) = lab.runs.events(lambda found: found == token, anew=True)
    assert (event.token, event.kind, event.slurm_job_id, event.nonce) == (token, "ended", "7", "n")
    assert event.fields["exit_code"] == 0
    lab.runs.keep(event)
    assert lab.runs.events(lambda found: found == token) == []
    assert [kept.kind for kept in lab.runs.kept_events(token)] == ["ended"]
    lab.runs.keep(event)  # a worker that died after the move does it again


def test_events_of_tokens_that_are_not_wanted_stay_where_they_are(lab: Lab) -> None:
    token, other = lab.token(), lab.token()
    lab.event(token)
    lab.event(other)
    assert [event.token for event in lab.runs.events(lambda found: found == token)] == [token]
    assert [event.token for event in lab.runs.events(lambda found: found == other)] == [other]


def test_inputs_reach_the_job_and_outputs_the_worker(lab: Lab) -> None:
    token = lab.token()
    place = lab.runs.inputs_place(token)
    slide = os.urandom(3 * 1024 * 1024 + 17)
    for name, data in (("volume/inputs/0/a slide.svs", slide), ("volumes/x/empty", b"")):
        (place / name).parent.mkdir(mode=0o700, parents=True)
        (place / name).write_bytes(data)
    lab.runs.hand_over(token, NO_CHECK)
    run = lab.runs.path(token)
    lab.runs.write(token, "job.slurm", b"#!/bin/bash\n", mode=0o700)
    lab.job(
        f"cd {run}/volume && test -f ../volumes/x/empty && mkdir -p out/deep"
        " && cp 'inputs/0/a slide.svs' out/deep/copy && echo text >out/t && : >out/none"
    )
    volume = lab.runs.outputs_place(token, NO_CHECK) / "volume"
    assert (volume / "out" / "deep" / "copy").read_bytes() == slide
    assert (volume / "out" / "t").read_text() == "text\n"
    assert (volume / "out" / "none").read_bytes() == b""
    # A worker that starts again finds them.
    assert (lab.runs.outputs_place(token, NO_CHECK) / "volume" / "out" / "t").exists()


def test_an_input_that_nothing_was_written_to_does_not_count_as_new(lab: Lab) -> None:
    token = lab.token()
    inputs = lab.runs.inputs_place(token) / "volume" / "inputs"
    for name in ("same", "changed"):
        (inputs / name).mkdir(parents=True)
        (inputs / name / "f").write_text("as it came")
    lab.runs.hand_over(token, NO_CHECK)
    lab.runs.write(token, "job.slurm", b"", mode=0o700)
    lab.job(f"echo more >>{lab.runs.path(token)}/volume/inputs/changed/f")
    place = lab.runs.outputs_place(token, NO_CHECK)
    begun = (place / "job.slurm").stat().st_mtime_ns
    new = [path.parent.name for path in place.rglob("f") if path.stat().st_mtime_ns > begun]
    assert new == ["changed"]


def test_outputs_that_were_made_unreadable_are_read_all_the_same(lab: Lab) -> None:
    token = lab.token()
    lab.runs.write(token, "job.slurm", b"", mode=0o700)
    volume = lab.runs.path(token) / "volume"
    lab.job(f"cd {volume} && mkdir d && echo text >d/t && ln -s d/t inner && chmod 0 d/t && chmod 0 d")
    found = lab.runs.outputs_place(token, NO_CHECK) / "volume"
    make_safe(found)
    assert (found / "d" / "t").read_text() == "text\n"
    assert (found / "inner").read_text() == "text\n"


def test_a_log_is_read_by_pieces_and_is_empty_while_it_is_not_there(lab: Lab) -> None:
    token = lab.token()
    log = lab.runs.path(token) / "output.log"
    assert (lab.runs.size(log), lab.runs.read_at(log, 0, 100)) == (0, b"")
    lab.job(f"head -c 3000000 /dev/zero >{log} && printf end >>{log}")
    assert lab.runs.size(log) == 3_000_003
    assert lab.runs.read_at(log, 3_000_000, 100) == b"end"
    assert lab.runs.read_at(log, 0, 2_500_000) == bytes(2_500_000)
    assert lab.runs.read_at(log, 4_000_000, 1) == b""


def test_whether_a_file_can_be_read_is_said_for_the_jobs_user(lab: Lab) -> None:
    private = lab.shared / f"private-{uuid.uuid4().hex[:6]}"
    lab.job(f"umask 077; echo x >{private}")
    assert lab.runs.can_read(private)
    assert not lab.runs.can_read(private.with_name("nothing"))
    assert not lab.runs.can_read(lab.shared)


def test_data_are_removed_and_log_and_script_stay(lab: Lab) -> None:
    token = lab.token()
    run = lab.runs.path(token)
    for name in ("arguments", "environment", "nonce", "job.slurm"):
        lab.runs.write(token, name, b"x")
    lab.job(
        f"cd {run} && echo log >output.log && mkdir -p volume/d/e && echo x >volume/d/e/f && chmod 0 volume/d/e volume/d"
    )
    lab.runs.remove_data(token)
    assert lab.job(f"ls -A {run}").split() == ["job.slurm", "output.log"]
    lab.runs.remove(token)
    assert lab.job(f"ls -A {run} 2>&1 || true").strip().endswith("No such file or directory")


def test_what_is_gone_is_no_error_when_it_is_removed(lab: Lab) -> None:
    lab.runs.remove("gw-suite-gone")
    lab.runs.remove_data("gw-suite-gone")
    lab.runs.remove_log(lab.shared / "gone.log")
    assert lab.runs.kept_events("gw-suite-gone") == []
