"""The checks by name: `nox` runs what needs no services, `nox -s all_tests` everything, as CI does."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "unit"]
nox.options.default_venv_backend = "venv"


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and import rules."""
    session.install("-e", ".[girder,test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy --strict over both packages."""
    session.install("-e", ".[girder,test]")
    session.run("mypy")


@nox.session
def unit(session: nox.Session) -> None:
    """Tests that need no service: well under a minute."""
    session.install("-e", ".[girder,test]")
    session.run("pytest", "tests/unit", "tests/test_architecture.py", "tests/test_docs.py", *session.posargs)


@nox.session(venv_backend="none")
def all_tests(session: nox.Session) -> None:
    """Everything, on the real stack."""
    session.run("tests/run.sh", "all", *session.posargs, external=True)
