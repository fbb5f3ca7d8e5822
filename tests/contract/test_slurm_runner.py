"""What a program that runs as a job gives its caller, here without Slurm and in real Slurm."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import (
    CommandError,
    CommandNotFound,
    CommandStopped,
    CommandTimeout,
)
from girder_worker_singularity.holder import Holder, write_holder
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.errors import SubmitRejected, SubmitUnsure
from girder_worker_slurm.job.slurm_runner import SlurmCommandRunner
from tests.contract.test_cluster import COMMANDS, LABS, SMALL

ENV = {"PATH": os.environ["PATH"], "APPTAINER_COLOUR": "blue", "SECRET": "do not pass on"}


class Bench:
    def __init__(self, lab) -> None:
        self.lab = lab
        self.directory = lab.runs.root / "commands"
        self.runner = self.make()

    def make(self, options=SMALL):
        return SlurmCommandRunner(
            self.lab.cluster,
            SystemClock(),
            self.directory,
            token_prefix="gw-contract-",
            options=options,
            scratch_variables=("TMPDIR", "APPTAINER_TMPDIR"),
        )

    def sh(self, script, *arguments, timeout_seconds=60.0, on_line=lambda _line: None, **how):
        argv = ("sh", "-c", script, *(("sh", *arguments) if arguments else ()))
        return self.runner.stream(argv, timeout_seconds=timeout_seconds, on_line=on_line, env=ENV, **how)

    def left_in_queue(self):
        rows = self.lab.cluster.snapshot().rows
        return [
            row for row in rows if row.token.startswith("gw-contract-c") and row.state not in FINAL_STATES
        ]


@pytest.fixture(params=["direct", COMMANDS])
def bench(request, tmp_path):
    for lab in LABS[request.param](tmp_path):
        yield Bench(lab)


def test_lines_and_exit_code_arrive(bench):
    lines = []
    result = bench.sh("echo one; echo two >&2; printf three; exit 3", on_line=lines.append)
    assert [line for line in lines if not line.startswith("Slurm:")] == ["one", "two", "three"]
    assert result.returncode == 3
    assert result.stdout.endswith("one\ntwo\nthree")


def test_arguments_arrive_as_they_are(bench):
    odd = ["a $(id)", '"q"', "'x'", ";é", "", "-n", "*", "x\ny"]
    result = bench.sh('printf "<%s>" "$@"', *odd)
    assert result.stdout.endswith("".join(f"<{argument}>" for argument in odd))


def test_only_what_apptainer_needs_of_the_environment_is_passed_on(bench):
    result = bench.sh('echo "$APPTAINER_COLOUR,${SECRET-none}"')
    assert result.stdout.endswith("blue,none\n")


def test_scratch_is_a_directory_of_the_node_that_goes_with_the_job(bench):
    script = 'd=$APPTAINER_TMPDIR; mkdir "$d/locked"; touch "$d/locked/x"; chmod 0500 "$d/locked"; test "$d" = "$TMPDIR" && echo "$d"'
    scratch = bench.sh(script).stdout.split()[-1]
    assert "girder-command-" in scratch
    bench.lab.wait_for(lambda: not Path(scratch).exists(), "the removal of scratch")


def test_files_of_a_running_program_are_closed_to_others_and_gone_afterwards(bench):
    modes = []

    def look(line):
        if line == "go":
            modes.extend(
                stat.S_IMODE(path.stat().st_mode)
                for run in bench.directory.iterdir()
                for path in (run, run / "environment", run / "arguments")
            )

    bench.sh("echo go; sleep 1", on_line=look)
    assert modes == [0o700, 0o600, 0o600]
    assert list(bench.directory.iterdir()) == []


def test_a_program_that_is_not_on_the_node_is_named(bench):
    with pytest.raises(CommandNotFound, match="no-such-program"):
        bench.runner.run(["no-such-program"], timeout_seconds=20, env=ENV)


def test_a_program_that_takes_too_long_is_ended(bench):
    with pytest.raises(CommandTimeout) as caught:
        bench.sh("echo early; exec sleep 300", timeout_seconds=1.0)
    assert "early\n" in caught.value.stdout
    bench.lab.wait_for(lambda: not bench.left_in_queue(), "the end of the job")


def test_who_wants_it_no_more_has_it_stopped(bench):
    begun = threading.Event()
    with pytest.raises(CommandStopped):
        bench.sh("echo early; exec sleep 300", on_line=lambda _line: begun.set(), should_stop=begun.is_set)
    bench.lab.wait_for(lambda: not bench.left_in_queue(), "the end of the job")


def test_an_error_of_the_listener_ends_the_program_and_reaches_the_caller(bench):
    def fail(line):
        if line == "early":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.sh("echo early; exec sleep 300", on_line=fail)
    bench.lab.wait_for(lambda: not bench.left_in_queue(), "the end of the job")


def test_several_at_once_do_not_mix(bench):
    results = {}

    def run(number):
        results[number] = bench.sh(f"echo {number}; exit {number}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {number: result.returncode for number, result in results.items()} == {1: 1, 2: 2, 3: 3, 4: 4}
    assert all(result.stdout.endswith(f"{number}\n") for number, result in results.items())


def test_what_a_job_cannot_do_is_refused(bench, tmp_path):
    with pytest.raises(CommandError, match="input"):
        bench.runner.run(["cat"], timeout_seconds=5, stdin="x")
    with pytest.raises(CommandError, match=str(tmp_path)):
        bench.runner.run(["pwd"], timeout_seconds=5, cwd=tmp_path)


def test_jobs_that_somebody_waits_for_are_known_by_name(bench):
    seen = []
    bench.sh("echo go", on_line=lambda line: seen.append(bench.runner.tokens()) if line == "go" else None)
    assert [len(tokens) for tokens in seen] == [1]
    assert bench.runner.tokens() == set()


def test_jobs_of_a_worker_that_died_are_ended_and_those_of_others_go_on(bench, monkeypatch):
    monkeypatch.setattr("girder_worker_slurm.job.slurm_runner._LOOK_SECONDS", 1.0)
    monkeypatch.setattr("girder_worker_slurm.job.slurm_runner._GRACE_SECONDS", 1.0)
    kept = []

    def look(line):
        if line == "first":
            (run,) = bench.directory.iterdir()
            bench.runner.end_abandoned()
            kept.append(run.is_dir())
            # A process number of this host, with the start of another process: it certainly does not run any more.
            write_holder(run / "owner.json", replace(Holder.this_process(), process_start=1))
            bench.runner.end_abandoned()
            kept.append(run.is_dir())

    result = bench.sh("echo first; exec sleep 300", on_line=look)
    assert kept == [True, False]
    assert result.returncode == -9
    assert not bench.left_in_queue()


def test_files_that_a_job_makes_while_they_are_removed_keep_nothing_for_ever(bench):
    run = bench.directory / "gw-x"
    run.mkdir(parents=True)
    write_holder(run / "owner.json", replace(Holder.this_process(), process_start=1))
    until = threading.Event()

    def write():
        for number in itertools.count():
            if until.is_set():
                return
            with contextlib.suppress(OSError):
                (run / f"event-{number}").write_text("x")

    writer = threading.Thread(target=write)
    writer.start()
    bench.lab.wait_for(lambda: len(list(run.glob("event-*"))) > 300, "files")
    bench.runner.end_abandoned()
    kept = run.exists()
    until.set()
    writer.join()
    bench.runner.end_abandoned()
    assert not kept
    assert list(bench.directory.iterdir()) == []


class LosesTheAnswer:
    """A cluster whose first answer to a submission gets lost, with or without the job."""

    def __init__(self, cluster, *, takes_it) -> None:
        self._cluster = cluster
        self._takes_it = takes_it
        self.submitted = 0

    def submit(self, submission):
        self.submitted += 1
        if self.submitted > 1:
            return self._cluster.submit(submission)
        if self._takes_it:
            self._cluster.submit(submission)
        msg = "no answer"
        raise SubmitUnsure(msg)

    def __getattr__(self, name):
        return getattr(self._cluster, name)


@pytest.mark.parametrize(("takes_it", "submitted"), [(True, 1), (False, 2)])
@pytest.mark.fault("sbatch times out although the job exists", phases=("image converting",))
def test_a_lost_answer_makes_no_second_job_and_loses_none(bench, monkeypatch, takes_it, submitted):
    monkeypatch.setattr("girder_worker_slurm.job.slurm_runner._AGAIN_SECONDS", 1.0)
    cluster = LosesTheAnswer(bench.lab.cluster, takes_it=takes_it)
    bench.lab.cluster = cluster
    bench.runner = bench.make()
    assert bench.sh("echo once").stdout.endswith("once\n")
    assert cluster.submitted == submitted


@pytest.mark.slurm
class TestInSlurm:
    @pytest.fixture
    def bench(self, tmp_path):
        for lab in LABS["commands"](tmp_path):
            yield Bench(lab)

    def test_a_job_that_waits_says_why_and_can_be_stopped(self, bench, monkeypatch):
        monkeypatch.setattr("girder_worker_slurm.job.slurm_runner._LOOK_SECONDS", 1.0)
        bench.runner = bench.make((*SMALL, ("begin", "now+1hour")))
        lines = []
        with pytest.raises(CommandStopped):
            bench.sh(
                "echo never", on_line=lines.append, should_stop=lambda: "Slurm: PENDING (BeginTime)" in lines
            )
        bench.lab.wait_for(lambda: not bench.left_in_queue(), "the end of the job")

    def test_a_job_that_slurm_refuses_is_an_error_in_its_words(self, bench):
        bench.runner = bench.make((*SMALL, ("partition", "nosuch")))
        with pytest.raises(SubmitRejected, match="invalid partition"):
            bench.sh("true")
        assert list(bench.directory.iterdir()) == []

    def test_a_job_that_slurm_ends_is_no_success(self, bench, monkeypatch):
        monkeypatch.setattr("girder_worker_slurm.job.slurm_runner._LOOK_SECONDS", 1.0)
        monkeypatch.setattr("girder_worker_slurm.job.slurm_runner._GRACE_SECONDS", 2.0)
        seen = []

        def end(line):
            if line == "go":
                (row,) = bench.left_in_queue()
                bench.lab.cluster.cancel([row.token], kill=True)
            seen.append(line)

        result = bench.sh("echo go; exec sleep 300", on_line=end)
        assert result.returncode != 0
        assert "CANCELLED" in result.stdout or result.returncode > 128
