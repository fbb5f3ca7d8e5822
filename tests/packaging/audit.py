"""Is anything known against the versions that an installation gets? `nox -s audit` runs this; it needs pip-audit.

pip-audit finds nothing against a version that its service does not know, and says so as if all were well: so does every
mirror without such data. It is therefore asked first about a version that is known to be vulnerable. If it finds
nothing there, no audit was made, which is another answer than "nothing is known".

Exit codes: 0 nothing is known, 1 something is (or a version could not be looked up), 2 wrong usage, 3 no audit was made
(with --if-reachable: 0, and the last line says it).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_WORKER = Path(__file__).parents[2] / "worker"
PINS = _WORKER / "constraints.txt"
IGNORED = _WORKER / "audit-ignore.txt"
KNOWN_TO_BE_VULNERABLE = "jinja2==2.10"
_PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
_SECONDS = 600
NO_AUDIT = 3


class NoAuditMade(Exception):
    """Whoever should know does not answer, or knows nothing."""


@dataclass(frozen=True)
class Finding:
    """What is known against a version."""

    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        name, *others = self.ids
        also = f" ({', '.join(others)})" if others else ""
        return f"{self.version}: {name}{also}, fixed in {', '.join(self.fixed_in) or 'no version yet'}"


@dataclass(frozen=True)
class Report:
    """What pip-audit found, and what it did not look up."""

    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any], asked: Iterable[str]) -> Report:
        """Of an answer in JSON to a question about `asked`."""
        findings, looked_up = [], set()
        for entry in told["dependencies"]:
            if "skip_reason" in entry:
                continue
            version = f"{entry['name']}=={entry['version']}"
            looked_up.add(version)
            findings += [
                Finding(version, (one["id"], *one.get("aliases", ())), tuple(one.get("fix_versions", ())))
                for one in entry["vulns"]
            ]
        return cls(tuple(findings), tuple(version for version in asked if version not in looked_up))


def pinned(text: str) -> list[str]:
    """The versions that this file of pip gives to an installation on Linux, whatever its Python."""
    found = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        environments = [
            {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
            for python in _PYTHONS
        ]
        if pin.marker is None or any(pin.marker.evaluate(environment) for environment in environments):  # type: ignore[arg-type]
            found.append(f"{pin.name}{pin.specifier}")
    return found


def ignored(text: str) -> dict[str, str]:
    """The findings that are accepted, with the reason; raises ValueError where a line has none."""
    reasons = {}
    for line in text.splitlines():
        name, _, reason = line.partition(" ")
        if not name or name.startswith("#"):
            continue
        if not reason.strip():
            raise ValueError(f"{name} has no reason")
        reasons[name] = reason.strip()
    return reasons


def rounds(versions: Sequence[str]) -> list[list[str]]:
    """The same, so that none has a package twice, which pip-audit refuses."""
    divided: list[dict[str, str]] = []
    for version in versions:
        name = version.partition("==")[0]
        free = next((one for one in divided if name not in one), None)
        if free is None:
            divided.append(free := {})
        free[name] = version
    return [list(one.values()) for one in divided]


def audit(
    versions: Sequence[str], accepted: Mapping[str, str], ask: Callable[[Sequence[str]], Report]
) -> tuple[int, list[str]]:
    """Exit code, and what to say; raises NoAuditMade."""
    probe = ask([KNOWN_TO_BE_VULNERABLE])
    if not probe.findings:
        raise NoAuditMade(f"the service that pip-audit asks knows nothing against {KNOWN_TO_BE_VULNERABLE}")
    reports = [ask(one) for one in rounds(versions)]
    findings = [finding for report in reports for finding in report.findings]
    unknown = [version for report in reports for version in report.unknown]
    bad = [finding for finding in findings if not accepted.keys() & set(finding.ids)]
    lines = [f"audit: {finding}" for finding in bad]
    lines += [f"audit: {version}: could not be looked up" for version in unknown]
    seen = {name for finding in findings for name in finding.ids}
    lines += [
        f"audit: {name} in {IGNORED.name} is not found any more: take it out"
        for name in accepted
        if name not in seen
    ]
    if bad or unknown:
        remedy = f"Renew {PINS.name}, or say in {IGNORED.name} why it does no harm."
        return 1, [
            *lines,
            f"audit: FAILED: {len(bad)} findings, {len(unknown)} not looked up, of {len(versions)} versions. {remedy}",
        ]
    passed = f" but what {IGNORED.name} accepts" if findings else ""
    return 0, [*lines, f"audit: nothing is known against {len(versions)} versions{passed}"]


def ask_pip_audit(versions: Sequence[str]) -> Report:
    """What pip-audit says; raises NoAuditMade when it says nothing that can be understood."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "versions.txt"
        file.write_text("".join(f"{version}\n" for version in versions), encoding="utf-8")
        argv = [sys.executable, "-m", "pip_audit", "--requirement", str(file), "--no-deps", "--disable-pip"]
        try:
            done = subprocess.run(
                [*argv, "--format=json", "--progress-spinner=off"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NoAuditMade(f"pip-audit has not ended within {_SECONDS} s") from None
    try:
        return Report.of(json.loads(done.stdout), versions)
    except (ValueError, KeyError, TypeError):
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise NoAuditMade(f"pip-audit ended with {done.returncode}: {words[-1] if words else ''}") from None


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Is anything known against the pinned versions?")
    parser.add_argument("--if-reachable", action="store_true", help="no failure if nobody can be asked")
    arguments = parser.parse_args()
    try:
        accepted = ignored(IGNORED.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"audit: {IGNORED}: {error}", file=sys.stderr)
        return 2
    try:
        code, lines = audit(pinned(PINS.read_text(encoding="utf-8")), accepted, ask_pip_audit)
    except NoAuditMade as why:
        print(f"audit: NO AUDIT WAS MADE: {why}")
        return 0 if arguments.if_reachable else NO_AUDIT
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
