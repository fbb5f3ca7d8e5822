"""The table of faults says what the tests' markers say, and only what has passed."""

from __future__ import annotations

import json

import pytest

from tests.support.faults import PHASES, MarkerInvalid, Proof, main, proofs, table, unproved

MARKED = """
import pytest

@pytest.mark.fault("disk full", phases=("running", "ended"))
@pytest.mark.fault("disk slow", phases=("ended",))
@pytest.mark.parametrize("x", [1])
def test_it(x):
    pass

def test_another():
    pass
"""


def marked_tests(tmp_path, text, name="acceptance/test_disk.py"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return tmp_path


def test_markers_are_read_from_the_source(tmp_path):
    assert proofs(marked_tests(tmp_path, MARKED)) == [
        Proof("disk full", ("running", "ended"), "acceptance/test_disk.py", "test_it"),
        Proof("disk slow", ("ended",), "acceptance/test_disk.py", "test_it"),
    ]


@pytest.mark.parametrize(
    "marker",
    [
        '"disk full"',
        '"disk full", phases=()',
        '"disk full", phases=("sleeping",)',
        '"disk full", phases=PHASES',
        '"disk | full", phases=("running",)',
        'phases=("running",)',
        '"a", "b", phases=("running",)',
    ],
)
def test_a_marker_that_no_table_can_be_made_from_is_named(tmp_path, marker):
    text = f"import pytest\n@pytest.mark.fault({marker})\ndef test_it():\n    pass\n"
    with pytest.raises(MarkerInvalid, match="test_it"):
        proofs(marked_tests(tmp_path, text))


def test_a_cell_says_whether_services_were_real(tmp_path):
    model = MARKED.replace('("running", "ended")', '("pending", "running")')
    found = proofs(marked_tests(marked_tests(tmp_path, MARKED), model, "unit/test_disk.py"))
    row = next(line for line in table(found).splitlines() if line.startswith("| disk full"))
    cells = dict(zip(PHASES, (cell.strip() for cell in row.split("|")[2:14]), strict=True))
    shown = {phase: cell for phase, cell in cells.items() if cell}
    assert shown == {"pending": "○", "running": "●", "ended": "●"}
    assert "`acceptance/test_disk.py`, `unit/test_disk.py`" in row


@pytest.mark.parametrize(
    ("outcomes", "is_proved"),
    [
        (["passed"], True),
        (["passed", "passed"], True),
        (["passed", "failed"], False),
        (["skipped"], False),
        ([], False),
    ],
)
def test_only_a_test_that_ran_and_always_passed_proves_something(tmp_path, outcomes, is_proved):
    found = proofs(marked_tests(tmp_path / "tests", MARKED))
    results = tmp_path / "results"
    results.mkdir()
    entry = {"file": "acceptance/test_disk.py", "test": "test_it"}
    (results / "1.jsonl").write_text(
        "".join(json.dumps({**entry, "outcome": outcome}) + "\n" for outcome in outcomes)
    )
    assert (unproved(found, results) == []) is is_proved


def test_without_any_result_everything_is_unproved(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "tests/acceptance/test_restart.py" in capsys.readouterr().out


def test_this_run_s_outcomes_are_written_down_where_that_is_wanted(tmp_path, pytester_run):
    results = pytester_run(MARKED)
    assert {(entry["test"], entry["outcome"]) for entry in results} == {("test_it", "passed")}


@pytest.fixture
def pytester_run(tmp_path):
    """What the recorder writes while pytest runs a file."""
    from tests.support.faults import FaultRecorder

    def run(text):
        marked_tests(tmp_path / "tests", text, "acceptance/test_disk.py")
        (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault: x\n")
        recorder = FaultRecorder(tmp_path)
        arguments = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            f"--rootdir={tmp_path}",
            "-c",
            str(tmp_path / "pytest.ini"),
        ]
        assert pytest.main([*arguments, str(tmp_path / "tests")], plugins=[recorder]) == 0
        return [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]

    return run
