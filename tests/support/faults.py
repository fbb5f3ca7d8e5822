"""The fault matrix: what can go wrong, how far a job has come, and the tests that prove each pair.

A test says what it proves by a marker, whose arguments are literals, because the table in docs/crash-recovery.md is made
from the source::

    @pytest.mark.fault("slurmctld killed and restarted", phases=("pending", "running"))

`docs/generate.py --check` compares table and markers; `python -m tests.support.faults DIRECTORY` fails unless each marked
test has passed in the runs that GIRDER_SLURM_FAULTS=DIRECTORY has seen. So CI is green only where the table is true.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pytest

TESTS = Path(__file__).parents[1]
PHASES = (
    "message received",
    "directory written",
    "inputs staging",
    "image converting",
    "intent written",
    "sbatch in flight",
    "submitted",
    "pending",
    "running",
    "ended",
    "outputs uploading",
    "status reporting",
)
#: Whose tests meet the real thing; all others have a model of what is around the worker.
REAL = ("acceptance", "integration", "compose")
RESULTS = "GIRDER_SLURM_FAULTS"


class MarkerInvalid(Exception):
    """A marker that the table cannot be made from."""


@dataclass(frozen=True)
class Proof:
    """One test, and what it proves."""

    fault: str
    phases: tuple[str, ...]
    #: Path below tests/, and the function.
    file: str
    test: str

    @property
    def is_real(self) -> bool:
        """Whether the services in it are real ones."""
        return self.file.split("/", 1)[0] in REAL


def proofs(tests: Path = TESTS) -> list[Proof]:
    """What all marked tests prove, read from their sources; raises MarkerInvalid."""
    found = []
    for path in sorted(tests.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                found += list(_proofs_of(node, path.relative_to(tests).as_posix()))
    return found


def _proofs_of(function: ast.FunctionDef, file: str) -> Iterator[Proof]:
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != "pytest.mark.fault":
            continue
        where = f"{file}, {function.name}"
        try:
            (fault,) = (ast.literal_eval(argument) for argument in decorator.args)
            ((name, phases),) = (
                (keyword.arg, ast.literal_eval(keyword.value)) for keyword in decorator.keywords
            )
        except (ValueError, TypeError) as error:
            msg = f"{where}: a fault is a name and `phases`, both literal."
            raise MarkerInvalid(msg) from error
        problem = problem_of(fault, name, phases)
        if problem:
            msg = f"{where}: {problem}"
            raise MarkerInvalid(msg)
        yield Proof(fault, tuple(phases), file, function.name)


def problem_of(fault: object, name: object, phases: object) -> str:
    """What is wrong with the arguments of a marker; empty if nothing is."""
    if not isinstance(fault, str) or not fault or "|" in fault:
        return f"{fault!r} is no name of a fault."
    if name != "phases" or not isinstance(phases, tuple) or not phases:
        return "`phases` is a tuple of at least one."
    unknown = [phase for phase in phases if phase not in PHASES]
    return f"unknown phases: {unknown}" if unknown else ""


def table(found: Sequence[Proof]) -> str:
    """The matrix in Markdown: ● where real services are in the test, ○ where a model stands for them."""
    lines = [
        f"| | {' | '.join(PHASES)} | tests |",
        f"|---|{':-:|' * len(PHASES)}---|",
    ]
    for fault in sorted({proof.fault for proof in found}, key=str.lower):
        mine = [proof for proof in found if proof.fault == fault]
        cells = [_cell([proof for proof in mine if phase in proof.phases]) for phase in PHASES]
        files = sorted({proof.file for proof in mine})
        lines.append(f"| {fault} | {' | '.join(cells)} | {', '.join(f'`{file}`' for file in files)} |")
    return "\n".join(lines) + "\n"


def _cell(mine: Sequence[Proof]) -> str:
    if not mine:
        return ""
    return "●" if any(proof.is_real for proof in mine) else "○"


def unproved(found: Sequence[Proof], results: Path) -> list[str]:
    """The marked tests that did not pass in the runs whose outcomes are here: failed, skipped, or never run."""
    outcomes: dict[tuple[str, str], set[str]] = {}
    for path in results.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            outcomes.setdefault((entry["file"], entry["test"]), set()).add(entry["outcome"])
    return [
        f"tests/{proof.file}::{proof.test}: {', '.join(sorted(seen)) or 'not run'}"
        for proof in found
        if (seen := outcomes.get((proof.file, proof.test), set())) != {"passed"}
    ]


class FaultRecorder:
    """Writes down how marked tests end, for `unproved`. Registered where GIRDER_SLURM_FAULTS names a directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / f"{os.getpid()}.jsonl"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The outcome of a test's body; that of its set-up only if it did not come so far."""
        if "fault" not in report.keywords or (report.when != "call" and report.passed):
            return
        file, test = report.nodeid.split("::")[0], report.nodeid.split("::")[-1].partition("[")[0]
        entry: dict[str, Any] = {
            "file": file.removeprefix("tests/"),
            "test": test,
            "outcome": report.outcome,
        }
        with self._file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Says which marked tests have not passed; 1 if there are some."""
    missing = unproved(proofs(), Path(arguments[0]))
    print("\n".join(missing) or "Every test of the fault matrix has passed.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
