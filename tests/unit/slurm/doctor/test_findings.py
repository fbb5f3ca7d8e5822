"""Findings, the order of checks, and secrets."""

from __future__ import annotations

import pytest

from girder_worker_slurm.doctor.finding import Check, Finding, Level, fail, ok, run_checks, warn
from girder_worker_slurm.doctor.secret_words import hiding
from girder_worker_slurm.settings import load_settings


def test_every_finding_that_is_not_ok_needs_a_remedy():
    for level in (Level.WARN, Level.FAIL):
        with pytest.raises(ValueError, match="remedy"):
            Finding("x", level, "Found.")
    with pytest.raises(ValueError, match="remedy"):
        Finding("x", Level.OK, "Found.", "Do.")


def test_what_needs_a_failed_check_is_not_looked_at_and_neither_is_what_needs_that():
    checks = [
        Check("root", lambda: [fail("root", "Bad.", "Mend it.")]),
        Check("other", lambda: [ok("other", "Fine.")]),
        Check("probe", lambda: pytest.fail("was run"), ("root",)),
        Check("after", lambda: pytest.fail("was run"), ("probe",)),
    ]

    found = {finding.check: finding for finding in run_checks(checks)}

    assert [found[name].level for name in ("root", "other", "probe", "after")] == [
        Level.FAIL,
        Level.OK,
        Level.SKIP,
        Level.SKIP,
    ]
    assert "root" in found["probe"].found
    assert found["probe"].remedy == ""


def test_a_warning_holds_nothing_up():
    checks = [
        Check("a", lambda: [warn("a", "So so.", "Look.")]),
        Check("b", lambda: [ok("b", "Fine.")], ("a",)),
    ]

    assert [finding.level for finding in run_checks(checks)] == [Level.WARN, Level.OK]


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on():
    def broken():
        yield ok("a", "Fine.")
        raise RuntimeError("surprise")

    found = list(run_checks([Check("a", broken), Check("b", lambda: [ok("b", "Fine.")])]))

    assert [finding.level for finding in found] == [Level.OK, Level.FAIL, Level.OK]
    assert "surprise" in found[1].found


def test_no_password_of_the_settings_and_no_user_of_any_address_is_shown():
    settings = load_settings(
        (),
        {
            "GIRDER_WORKER_BROKER": "amqp://girder:p%40ssword@host/",
            "GIRDER_WORKER_BACKEND": "redis://:hidden1@r/0",
        },
    )
    hide = hiding(settings)

    text = hide("p@ssword, p%40ssword, hidden1 and https://me:you@host/x")

    assert text == "***, ***, *** and https://***@host/x"


def test_findings_pass_through_the_hiding():
    found = run_checks(
        [Check("a", lambda: [fail("a", "secret", "use secret")])], hide=lambda t: t.replace("secret", "*")
    )

    assert [(finding.found, finding.remedy) for finding in found] == [("*", "use *")]
