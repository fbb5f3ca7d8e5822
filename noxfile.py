"""The checks by name: `nox` runs what needs no services, `nox -s all_tests` everything, as CI does.

`nox -s release` makes what is handed out (CONTRIBUTING.md says how).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from email import message_from_bytes
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "unit"]
# The first is much quicker.
nox.options.default_venv_backend = "uv|venv"

#: Where sdist, wheel and what goes with them are made.
DIST = Path(os.environ.get("GIRDER_SLURM_DIST") or "dist").absolute()
UNIT_TESTS = ("tests/unit", "tests/test_architecture.py", "tests/test_docs.py")
PINS = "worker/constraints.txt"


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
    session.run("pytest", *UNIT_TESTS, "tests/packaging", *session.posargs)


@nox.session(venv_backend="uv")
@nox.parametrize("resolution", [nox.param("lowest-direct", id="lowest"), nox.param("highest", id="newest")])
def dependencies(session: nox.Session, resolution: str) -> None:
    """The unit tests with the lowest versions that pyproject.toml allows, and with the newest there are."""
    versions = session.cache_dir / f"versions-{resolution}.txt"
    session.run(
        "uv", "pip", "compile", "--quiet", f"--python={_python(session)}", f"--resolution={resolution}", "--extra=girder",
        "--no-header", f"--output-file={versions}", "pyproject.toml",
    )  # fmt: skip
    session.install("--constraint", str(versions), "-e", ".[girder,test]")
    session.run("pytest", "-p", "no:cacheprovider", *UNIT_TESTS, *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """The sdist, and the wheel made from it; looks at what is in them."""
    session.install("-e", ".[test]")
    shutil.rmtree(DIST, ignore_errors=True)
    session.run("uv", "build", "--quiet", f"--out-dir={DIST}", ".")
    session.run("pytest", "tests/packaging", env={"GIRDER_SLURM_DIST": str(DIST)})


@nox.session(venv_backend="uv")
def sbom(session: nox.Session) -> None:
    """The list of what an installation with worker/constraints.txt consists of, as CycloneDX, beside the wheel."""
    (wheel,) = DIST.glob("*.whl")
    scratch = session.cache_dir / "sbom"
    scratch.mkdir(exist_ok=True)
    listed = scratch / "listed"
    session.run("uv", "venv", "--quiet", "--clear", f"--python={_python(session)}", str(listed))
    session.run(
        "uv", "pip", "install", "--quiet", f"--python={listed}/bin/python", f"--constraint={PINS}", f"{wheel}[girder]",
    )  # fmt: skip
    project = scratch / "pyproject.toml"
    project.write_text(_project_with_version(wheel), encoding="utf-8")
    session.install("cyclonedx-bom>=7,<8", "packaging", "pytest", "pytest-timeout")
    # Reproducible: without time and serial number, so that two lists of the same versions are the same file.
    session.run(
        "cyclonedx-py", "environment", "--output-reproducible", "--validate", "--spec-version=1.6",
        f"--pyproject={project}", f"--output-file={DIST / wheel.stem.split('-py3')[0]}.cdx.json", f"{listed}/bin/python",
    )  # fmt: skip
    # Without the conftest of all tests, which wants the libraries of all tests.
    session.run(
        "pytest", "-p", "no:cacheprovider", "--confcutdir=tests/packaging", "tests/packaging/check_sbom.py",
        env={"GIRDER_SLURM_DIST": str(DIST)},
    )  # fmt: skip


@nox.session
def audit(session: nox.Session) -> None:
    """Is anything known against the pinned versions? Fails if so, and if nobody could be asked (not with --if-reachable)."""
    session.install("pip-audit>=2.9,<3", "pytest", "pytest-timeout")
    session.run(
        "pytest", "-p", "no:cacheprovider", "--confcutdir=tests/packaging", "tests/packaging/check_audit.py"
    )
    session.run("python", "tests/packaging/audit.py", *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """What is handed out, in dist/: sdist, wheel, pins, SBOM and checksums, of the tag that is checked out."""
    untracked = session.run("git", "status", "--porcelain", external=True, silent=True)
    if untracked:
        session.error(f"These files are not as committed:\n{untracked}")
    tag = session.run(
        "git", "describe", "--tags", "--exact-match", "--match", "v[0-9]*", external=True, silent=True
    ).strip()
    build(session)
    sbom(session)
    (wheel,) = DIST.glob("*.whl")
    if f"-{tag.removeprefix('v')}-" not in wheel.name:
        session.error(f"{wheel.name} is not of the tag {tag}.")
    shutil.copy(PINS, DIST / "constraints.txt")
    files = sorted(path for path in DIST.iterdir() if path.name not in {".gitignore", "SHA256SUMS"})
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (DIST / "SHA256SUMS").write_text("".join(sums), encoding="ascii")


def _python(session: nox.Session) -> str:
    """The interpreter of a session's environment."""
    told: str = session.run("python", "-c", "import sys; print(sys.executable)", silent=True)
    return told.strip()


def _project_with_version(wheel: Path) -> str:
    """What cyclonedx-py shall say of ourselves: pyproject.toml has no version, the wheel has."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    told = {"name": "Name", "version": "Version", "description": "Summary", "license": "License-Expression"}
    lines = [f"{key} = {json.dumps(metadata[header])}" for key, header in told.items()]
    lines.append(f"dependencies = {json.dumps(metadata.get_all('Requires-Dist'))}")
    return "\n".join(["[project]", *lines, ""])


@nox.session(venv_backend="none")
def all_tests(session: nox.Session) -> None:
    """Everything, on the real stack."""
    session.run("tests/run.sh", "all", *session.posargs, external=True)
