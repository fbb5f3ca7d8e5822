"""`doctor`: how findings are printed, and the exit code."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from girder_worker_slurm.cli.doctor_command import _examine
from girder_worker_slurm.doctor.finding import fail, ok, skip, warn


@pytest.fixture
def findings(monkeypatch):
    """What the doctor is to find."""
    found = []
    monkeypatch.setattr(sys.modules[_examine.__module__], "_examine", lambda _site: iter(found))
    return found


def test_a_finding_is_a_line_and_its_remedy_another(jobs, findings):
    findings += [
        ok("a", "Fine."),
        warn("b", "So so.", "Look."),
        fail("c", "Bad.", "Mend it."),
        skip("d", "Not looked at."),
    ]

    result = jobs.run("doctor")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[:6] == [
        "ok    a: Fine.",
        "warn  b: So so.",
        "      -> Look.",
        "FAIL  c: Bad.",
        "      -> Mend it.",
        "skip  d: Not looked at.",
    ]


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        ([ok("a", "Fine.")], 0, "All is well."),
        ([warn("a", "So so.", "Look.")], 0, "Nothing failed, 1 to look at."),
        ([fail("a", "Bad.", "Mend.")], 1, "1 failed, 0 to look at"),
        ([fail("a", "Bad.", "Mend."), skip("b", "Not looked at.")], 1, "1 failed, 0 to look at"),
    ],
)
def test_only_a_failure_makes_the_answer_no(jobs, findings, found, code, words):
    findings += found

    result = jobs.run("doctor")

    assert result.exit_code == code
    assert words in result.stdout.splitlines()[-1]


def test_machines_get_a_list_of_objects(jobs, findings):
    findings.append(fail("a", "Bad.", "Mend it."))

    result = jobs.run("doctor", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == [
        {"check": "a", "level": "fail", "found": "Bad.", "remedy": "Mend it."}
    ]


def test_settings_that_cannot_be_read_are_the_only_finding(jobs):
    jobs.environment["GIRDER_WORKER_SLURM_JOBS_ROOT"] = "relative/path"

    result = jobs.run("doctor", "--json")

    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)
    assert (finding["check"], finding["level"]) == ("settings", "fail")


def test_the_handler_of_sigterm_is_put_back(jobs, findings):
    before = signal.getsignal(signal.SIGTERM)

    jobs.run("doctor")

    assert signal.getsignal(signal.SIGTERM) is before
