"""The figures of benchmarks/run: what counts as reached, and that each with a goal is explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import GOALS, meets
from benchmarks.site import last_act, percentile

PAGE = Path(__file__).parents[3] / "docs" / "performance.md"


@pytest.mark.parametrize("name", GOALS)
def test_each_figure_with_a_goal_is_explained(name):
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value", "reached"),
    [
        ("dispatch_ratio_vs_bare", 0.9, True),
        ("dispatch_ratio_vs_bare", 0.89, False),
        ("completion_seconds_median", 1.0, False),
        ("girder_calls_per_job", 3, True),
        ("lost", 1, False),
        ("chain_jobs_per_second", 5.0, None),
    ],
)
def test_a_figure_reaches_its_goal_or_misses_it(name, value, reached):
    assert meets(name, value) is reached


def test_each_container_that_ran_shows_in_the_log():
    assert last_act("x\nran, last act at 12.5\nmore\nran, last act at 13.25\n") == [12.5, 13.25]
    assert last_act("nothing ran") == []


def test_a_percentile_is_one_of_the_values():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
