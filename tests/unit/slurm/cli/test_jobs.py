"""`jobs` and `show`."""

from __future__ import annotations

import json

import pytest

from girder_worker_slurm.cli.job_view import STATE_WORDS, ago, state_word
from girder_worker_slurm.job.state import JobState, Outcome, Phase, Verdict
from tests.unit.slurm.cli.conftest import GIRDER_TOKEN, NONCE, attempt

ENDED_WELL = Verdict(Outcome.SUCCESS, "completed", "Completed.")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (JobState(), "accepted"),
        (JobState(phase=Phase.ADMITTED, kind="container"), "staging"),
        (JobState(phase=Phase.ADMITTED, kind="ingest"), "ingesting"),
        (JobState(phase=Phase.STAGED), "preparing"),
        (JobState(phase=Phase.RENDERED), "waiting"),
        (JobState(phase=Phase.SUBMITTING), "submitting"),
        (JobState(phase=Phase.SUBMITTED), "pending"),
        (JobState(phase=Phase.SUBMITTED, started={}), "running"),
        (JobState(phase=Phase.SUBMITTED, started={}, ended={}), "ending"),
        (JobState(phase=Phase.SUBMITTED, started={}, cancel="in Girder"), "cancelling"),
        (JobState(phase=Phase.DECIDED, verdict=ENDED_WELL), "uploading"),
        (JobState(phase=Phase.DECIDED, verdict=Verdict(Outcome.ERROR, "x", "Failed.")), "reporting"),
        (JobState(phase=Phase.DELIVERED, verdict=ENDED_WELL), "reporting"),
        (JobState(phase=Phase.REPORTED, verdict=ENDED_WELL), "cleaning"),
        (JobState(phase=Phase.CLOSED, verdict=ENDED_WELL), "succeeded"),
        (JobState(phase=Phase.CLOSED, verdict=ENDED_WELL, cancel="in Girder"), "canceled"),
        (JobState(phase=Phase.CLOSED, verdict=ENDED_WELL, cancel="deleted"), "abandoned"),
        (JobState(phase=Phase.CLOSED), "abandoned"),
    ],
)
def test_every_state_has_a_word_that_is_explained(state, word):
    assert state_word(state) == word
    assert word in STATE_WORDS


def test_live_jobs_are_listed_and_ended_ones_only_on_request(jobs):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17", title="Nuclei")
    jobs.ended("task-2", girder_id="66a2")

    assert [line["task_id"] for line in jobs.json("jobs")] == ["task-1"]
    assert {line["task_id"]: line["state"] for line in jobs.json("jobs", "--all")} == {
        "task-1": "pending",
        "task-2": "succeeded",
    }


def test_the_table_has_what_a_person_asks_for(jobs):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17", title="Nuclei [bold]of[/bold] slide")

    answer = jobs.run("jobs").stdout

    for word in ("66a1", "Nuclei [bold]of[/bold] slide", "pending", "17", "org/image:1"):
        assert word in answer


def test_a_state_selects_among_ended_jobs_as_well(jobs):
    jobs.ended("task-1", outcome="error")
    jobs.ended("task-2")

    assert [line["task_id"] for line in jobs.json("jobs", "--state", "failed")] == ["task-1"]


def test_an_unknown_state_is_a_usage_error_that_names_the_states(jobs):
    result = jobs.run("jobs", "--state", "flying")

    assert result.exit_code == 2
    assert "pending" in result.stderr


def test_no_jobs_is_an_answer(jobs):
    assert jobs.run("jobs").stdout == "No jobs.\n"
    assert jobs.json("jobs") == []


def test_reading_leaves_a_half_written_line_alone(jobs):
    record = jobs.job("task-1", girder_id="66a1")
    state = record.path / "state.jsonl"
    with state.open("a") as handle:
        handle.write('{"event": "attem')
    before = state.read_bytes()

    assert jobs.json("jobs")[0]["state"] == "staging"
    assert state.read_bytes() == before


def test_a_damaged_record_does_not_hide_the_others(jobs):
    jobs.job("task-1", girder_id="66a1")
    (jobs.job("task-0").path / "state.jsonl").write_text("nonsense\n{}\n")

    assert [line["task_id"] for line in jobs.json("jobs")] == ["task-1"]


def test_show_tells_everything_but_secrets(jobs, tmp_path):
    log = tmp_path / "job.log"
    log.write_text(f"first\nmy token is {GIRDER_TOKEN}\nlast\n")
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17", title="Nuclei")
    record.append("attempt", **attempt("task-1", str(log)))
    record.append(
        "started", token=record.state.token, slurm_job_id="17", node="node7", at=1_700_000_020, nonce=NONCE
    )
    record.append("verdict", outcome="error", code="failed", sentence="The analysis ended with exit code 3.")

    text, found = jobs.run("show", "66a1"), jobs.json("show", "66a1")

    for word in (
        "66a1",
        "17",
        "node7",
        "Nuclei",
        "ada (5f01)",
        "The analysis ended with exit code 3.",
        str(log),
        "last",
    ):
        assert word in text.stdout
    assert found["log_tail"] == ["first", "my token is ***", "last"]
    assert found["started"]["node"] == "node7"
    assert found["user"] == {"id": "5f01", "login": "ada"}
    for secret in (GIRDER_TOKEN, NONCE):
        assert secret not in text.stdout + json.dumps(found)


@pytest.mark.parametrize("name", ["task-1", "task-", "66a1", "66", "17", "gw-abc-task-1"])
def test_a_job_is_found_by_any_of_its_ids(jobs, name):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")

    assert jobs.json("show", name)["task_id"] == "task-1"


def test_a_slurm_id_is_never_taken_for_a_beginning(jobs):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")

    assert jobs.run("show", "1").exit_code == 1


def test_an_ambiguous_name_lists_what_it_may_be(jobs):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    jobs.submitted("task-2", girder_id="66a2", slurm_job_id="18")

    result = jobs.run("show", "66a")

    assert result.exit_code == 2
    assert "task-1" in result.stderr
    assert "task-2" in result.stderr


def test_an_exact_name_wins_over_a_longer_one(jobs):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    jobs.submitted("task-11", girder_id="66a2", slurm_job_id="18")

    assert jobs.json("show", "task-1")["task_id"] == "task-1"


def test_an_unknown_job_is_one_line_and_exit_code_1(jobs):
    result = jobs.run("show", "nothing")

    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "No job here is called nothing" in result.stderr


def test_a_root_without_a_worker_is_said_plainly(jobs, tmp_path):
    jobs.environment["GIRDER_WORKER_SLURM_JOBS_ROOT"] = str(tmp_path / "other")

    result = jobs.run("jobs")

    assert result.exit_code == 1
    assert "no worker has run" in result.stderr


def test_a_wrong_setting_is_one_line_without_traceback(jobs):
    jobs.environment["DSA_WORKER_CONCURRENCY"] = "many"

    result = jobs.run("jobs")

    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "DSA_WORKER_CONCURRENCY" in result.stderr


def test_a_wrong_line_is_shown_without_the_password_in_it(jobs, tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[celery]\nbroker: amqp://girder:topsecret@host/\n")
    jobs.environment["GIRDER_WORKER_SLURM_CONFIG"] = str(file)

    result = jobs.run("jobs")

    assert result.exit_code == 1
    assert f"{file}:2" in result.stderr
    assert "topsecret" not in result.output


def test_a_job_whose_record_lacks_its_verdict_can_be_shown(jobs):
    jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17").append("closed", at=1.0)

    assert jobs.json("show", "task-1")["verdict"] is None


def test_debug_shows_where_an_error_comes_from(jobs):
    jobs.environment["DSA_WORKER_CONCURRENCY"] = "many"

    assert type(jobs.run("--debug", "jobs").exception).__name__ == "SettingsInvalid"


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (130, "2 min"), (3 * 3600, "3 h"), (3 * 86400 + 5, "3 d"), (-5, "0 s")]
)
def test_how_long_ago_is_short(seconds, words):
    assert ago("2026-01-01T00:00:00+00:00", 1_767_225_600 + seconds) == words


def test_explain_says_where_each_option_comes_from_and_what_it_replaced(jobs):
    record = jobs.submitted("task-1", girder_id="66aa", slurm_job_id="7")
    options = [
        {"name": "mem", "value": "4G", "origin": "The argument --slurm_mem", "instead_of": [["mem", "1G", "[slurm.options]"]]},
        {"name": "exclusive", "value": "", "origin": "[slurm.profiles] team/*", "instead_of": []},
    ]  # fmt: skip
    (record.path / "options.json").write_text(json.dumps(options))
    assert jobs.run("explain", "66aa").stdout.splitlines() == [
        "Girder user: ada (5f01)",
        "--mem=4G                        The argument --slurm_mem",
        "      instead of --mem=1G, [slurm.options]",
        "--exclusive                     [slurm.profiles] team/*",
    ]
    assert jobs.json("explain", "66aa") == options


def test_explain_of_a_job_that_is_not_that_far_is_told_so(jobs):
    jobs.submitted("task-1", girder_id="66aa", slurm_job_id="7")
    answer = jobs.run("explain", "66aa")
    assert answer.exit_code == 1
    assert "not been decided yet" in answer.stderr


def test_titles_and_logs_give_the_terminal_no_orders(jobs, tmp_path):
    log = tmp_path / "log"
    log.write_text("line\x1b[1A\x1b[2K\n", encoding="utf-8")
    title = "x\nstate: succeeded\x1b]0;owned\x07\u202e"
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17", title=title)
    record.append("attempt", **attempt("task-1", str(log)))
    jobs.root.keep_unhandled({"task_id": "t\x1b[2J", "task": "a\x1bb", "headers": {}}, "why\x1b[2J")

    for arguments in (
        ("show", "task-1"),
        ("jobs",),
        ("unhandled",),
        ("show", "x\x1b[2J"),
        ("show", "task-1", "--json"),
    ):
        result = jobs.run(*arguments)
        assert not {"\x1b", "\x07", "\u202e"} & set(result.output), arguments
    assert "x^Jstate: succeeded^[]0;owned^G\\u202e" in jobs.run("show", "task-1").stdout
    assert jobs.json("show", "task-1")["title"] == title


def slurm_that_says(directory, **programs):
    """Slurm's commands as lines of bash; the PATH that has them and no others."""
    directory.mkdir()
    for name, line in programs.items():
        (directory / name).write_text(f"#!/bin/bash\n{line}\n")
        (directory / name).chmod(0o755)
    return str(directory)


def test_show_says_what_a_running_job_has_used_so_far(jobs, tmp_path):
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    record.append("started", token=record.state.token, slurm_job_id="17", node="node7", at=1_700_000_020)
    jobs.environment["PATH"] = slurm_that_says(
        tmp_path / "bin",
        scontrol=f"echo 'JobId=17 JobName={record.state.token} JobState=RUNNING ExitCode=0:0'",
        sstat="echo '17.batch|1|00:02:03|65536K'",
    )
    assert (
        "usage so far:   64 MiB of memory at most and 2 min 3 s of processor time\n"
        in jobs.run("show", "17").stdout
    )
    assert jobs.json("show", "17")["usage_so_far"]["memory_peak_mib"] == 64.0
    record.append("ended", token=record.state.token, slurm_job_id="17", exit_code=0, cause="exit")
    assert jobs.json("show", "17")["usage_so_far"] is None


def test_show_needs_no_slurm(jobs, tmp_path):
    record = jobs.submitted("task-1", girder_id="66a1", slurm_job_id="17")
    record.append("started", token=record.state.token, slurm_job_id="17", node="node7", at=1_700_000_020)
    jobs.environment["PATH"] = slurm_that_says(tmp_path / "none")
    assert jobs.json("show", "17")["usage_so_far"] is None
    jobs.environment["PATH"] = slurm_that_says(tmp_path / "broken", scontrol="exit 1")
    assert jobs.json("show", "17")["state"] == "running"
