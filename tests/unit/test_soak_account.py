"""The account at the end of the soak: it has to see each lie that a worker could tell."""

from __future__ import annotations

import pytest

from tests.support.girder_site import CANCELED, ERROR, RUNNING, SUCCESS
from tests.support.soak.account import Seen, SoakJob, complaints, output_complaints

WHOLE = "toy starts in /opt\ntoy ends\n"
AGAIN = (
    "toy starts\nTry 1: Slurm job 7 was lost because its node failed on gs1. It is submitted anew.\n" + WHOLE
)
FAILED = WHOLE + "The analysis ended with exit code 3.\n"


def job(*, code: int = 0, cancelled: bool = False, ended_by: tuple[str, ...] = ()) -> SoakJob:
    return SoakJob("g1", "out-1.txt", code=code, is_cancelled=cancelled, ended_by=list(ended_by))


def seen(status: int, log: str, started: int = 1, attempts: int = 1) -> Seen:
    return Seen(status, log, ["gs1"] * started, attempts)


@pytest.mark.parametrize(
    ("asked", "end"),
    [
        (job(), seen(SUCCESS, WHOLE)),
        (job(), seen(SUCCESS, AGAIN, started=2, attempts=2)),
        (job(code=3), seen(ERROR, FAILED)),
        (job(cancelled=True), seen(CANCELED, "toy starts\n")),
        (job(cancelled=True), seen(CANCELED, "", started=0, attempts=0)),
        (job(ended_by=("scancel",)), seen(ERROR, "toy starts\n")),
        (job(ended_by=("scancel",)), seen(SUCCESS, WHOLE)),
    ],
)
def test_the_truth_is_no_complaint(asked, end):
    assert complaints(asked, end) == []


@pytest.mark.parametrize(
    ("asked", "end", "words"),
    [
        (job(), seen(RUNNING, "toy starts\n"), "has not ended"),
        (job(), seen(SUCCESS, "toy starts\n"), "a success that it is not"),
        (job(code=3), seen(SUCCESS, WHOLE), "a success that it is not"),
        (job(), seen(ERROR, WHOLE), "although the analysis ended well"),
        (job(), seen(ERROR, "toy starts\n"), "although nothing ended the analysis"),
        (job(code=3), seen(ERROR, WHOLE), "exit code 3 is not told"),
        (job(), seen(CANCELED, "toy starts\n"), "nobody asked for it"),
        (job(), seen(SUCCESS, WHOLE, started=2), "2 containers started in 1 attempts"),
        (job(), seen(SUCCESS, WHOLE + WHOLE), "in the log twice"),
        (job(), seen(SUCCESS, WHOLE, attempts=2), "of which the log says nothing"),
    ],
)
def test_a_lie_is(asked, end, words):
    assert any(words in complaint for complaint in complaints(asked, end))


def test_outputs_are_there_once_and_only_those_of_a_success_have_to_be():
    good, bad = SoakJob("1", "a"), SoakJob("2", "b")
    jobs = [(good, SUCCESS), (bad, ERROR)]
    assert output_complaints(jobs, ["a"]) == output_complaints(jobs, ["a", "b"]) == []
    assert output_complaints(jobs, ["b"]) == ["output a is missing"]
    assert output_complaints(jobs, ["a", "a"]) == ["output a is there 2 times"]
    assert output_complaints(jobs, ["a", "a (1)"]) == ["output a (1) is nobody's"]
