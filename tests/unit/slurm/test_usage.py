"""What a job used, in words."""

from __future__ import annotations

import pytest

from girder_worker_slurm.job.state import JobState
from girder_worker_slurm.job.usage import cpu_seconds, usage_of

STARTED = {"at": 1040.0, "node": "n1", "cpus": 8, "memory_mib": 16384}
ENDED = {"node": "n1", "seconds": 723, "times": "60m0.000s 0m45.500s", "memory_peak_bytes": 1288490189}


def said(started=STARTED, ended=ENDED, submitted_at=1000.0):
    usage = usage_of(JobState(submitted_at=submitted_at, started=started, ended=ended))
    return usage.sentence() if usage is not None else None


def test_memory_processors_time_and_wait_are_told_against_what_was_given():
    assert (
        said()
        == "Used 1.2 GiB of 16.0 GiB of memory and 5.0 of 8 processors; ran 12 min 3 s on n1, after 40 s in the queue."
    )


def test_what_is_not_known_is_left_out():
    bare = {"seconds": 4000, "node": "n1"}
    assert said({"at": 1000.0}, bare) == "Ran 1 h 6 min on n1, after 0 s in the queue."
    assert (
        said({}, {"seconds": 2, "memory_peak_bytes": 1024**2}, submitted_at=0.0)
        == "Used 1 MiB of memory; ran 2 s."
    )
    assert (
        said(STARTED, {"seconds": 0, "times": "0m0.1s 0m0.1s"}) == "Ran 0 s on n1, after 40 s in the queue."
    )


def test_a_clock_that_is_behind_makes_no_wait_before_the_submission():
    assert "after 0 s" in said(submitted_at=2000.0)


@pytest.mark.parametrize(("started", "ended"), [(None, ENDED), (STARTED, None), (None, None)])
def test_a_job_that_did_not_run_or_left_no_word_used_nothing_that_is_known(started, ended):
    assert said(started, ended) is None


def test_nonsense_in_an_event_is_not_known():
    assert said({"at": "soon", "cpus": True}, {"seconds": "long"}) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1m2.500s 0m0.500s", 63.0),
        ("0m1,25s 0m0,25s", 1.5),
        ("", None),
        ("1m2s 0m1s", None),
        ("0m1.0s", None),
        ("a b", None),
    ],
)
def test_the_words_of_bash_become_seconds(text, expected):
    assert cpu_seconds(text) == expected
