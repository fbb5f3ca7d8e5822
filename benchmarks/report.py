"""Runs all benchmarks and shows their figures beside the goals."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.conversions import cached_image, conversions
from benchmarks.latency import latency
from benchmarks.live_log import lines_of_writing_jobs
from benchmarks.network import network
from benchmarks.peers import peers
from benchmarks.site import Bench
from benchmarks.standing import standing
from benchmarks.throughput import arrays, chain, chain_without_container, dispatch

if TYPE_CHECKING:
    from collections.abc import Callable

#: What each figure is to be; the others are for those who look for the reason.
GOALS = {
    "dispatch_ratio_vs_bare": (">=", 0.9),
    "chain_ratio_vs_bare": (">=", 0.5),
    "girder_calls_per_job": ("<=", 3),
    "completion_seconds_median": ("<", 1.0),
    "completion_seconds_p95": ("<", 2.0),
    "start_seconds_median": ("<", 0.3),
    "queries_per_minute_at_5000": ("<=", 6),
    "kib_per_live_job": ("<", 20),
    "idle_cpu_percent_at_1000": ("<=", 3),
    "recovery_seconds_at_10000": ("<", 5),
    "completion_seconds_p95_on_network": ("<", 5),
    "recovery_seconds_at_10000_on_network": ("<", 30),
    "conversions_for_100_jobs": ("<=", 1),
    "cached_image_ms": ("<", 20),
    "lost": ("<=", 0),
    "doubled": ("<=", 0),
    "false_verdicts": ("<=", 0),
}


def main(description: str | None) -> int:
    """The command line; 0 when all was measured, whatever the figures are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer jobs and no comparison with other libraries"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"only some of: {', '.join(PARTS)}")
    given = parser.parse_args()
    unknown = set(given.only or ()) - set(PARTS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    begun = time.monotonic()
    figures: dict[str, Any] = {}
    with Bench.on_the_stack() as bench:
        parts = _Parts(bench, quick=given.quick)
        for name in given.only or PARTS:
            print(f"{name} ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
            figures |= PARTS[name](parts)
            if given.json is not None:
                given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    figures["load_average_at_end"] = round(os.getloadavg()[0], 1)
    figures["seconds"] = round(time.monotonic() - begun)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    show(figures)
    return 0


class _Parts:
    """The benchmarks with their sizes; one image serves all of them."""

    def __init__(self, bench: Bench, *, quick: bool) -> None:
        self._bench = bench
        self._quick = quick
        self._worker = bench.worker("main").start()
        self._image, self._cli = bench.ingest(self._worker)
        self._worker.stop()

    def latency(self) -> dict[str, Any]:
        """How soon."""
        self._worker.start()
        try:
            figures = latency(self._bench, self._worker, self._cli, 30 if self._quick else 100)
            # On a machine that does nothing else; under full load the chain's is the one to look at.
            return {**figures, "start_seconds_median": figures["idle_start_seconds_median"]}
        finally:
            self._worker.stop()

    def dispatch(self) -> dict[str, Any]:
        """How many, without Girder."""
        return dispatch(self._bench, self._image, 200 if self._quick else 1000)

    def chain(self) -> dict[str, Any]:
        """How many, with Girder."""
        sif = next(self._worker.sif.glob("*.sif"))
        figures = chain(self._bench, self._cli, sif, 150 if self._quick else 1000)
        figures["loaded_start_seconds_median"] = figures.pop("start_seconds_median")
        return figures | chain_without_container(self._bench, self._cli, 150 if self._quick else 1000)

    def images(self) -> dict[str, Any]:
        """What an image costs."""
        return cached_image(self._worker, self._image) | conversions(self._bench, 100)

    def standing(self) -> dict[str, Any]:
        """What jobs cost that wait."""
        return standing(self._bench, self._cli, window_seconds=20 if self._quick else 60)

    def network(self) -> dict[str, Any]:
        """What a network mount costs, which only root can make."""
        if os.geteuid() != 0:
            return {}
        return network(
            self._bench, self._worker.sif, self._cli, jobs=30 if self._quick else 100, standing=10_000
        )

    def log(self) -> dict[str, Any]:
        """How old lines are."""
        # Long enough for the last job to begin before the first one ends: two processors start some three a second.
        return lines_of_writing_jobs(
            self._bench, 40 if self._quick else 100, seconds=60 if self._quick else 150
        )

    def arrays(self) -> dict[str, Any]:
        """What an array of jobs would gain."""
        return {} if self._quick else arrays(self._bench, 1000)

    def peers(self) -> dict[str, Any]:
        """What others do."""
        return {} if self._quick else peers(self._bench, 100)


PARTS: dict[str, Callable[[_Parts], dict[str, Any]]] = {
    "latency": _Parts.latency,
    "images": _Parts.images,
    "dispatch": _Parts.dispatch,
    "chain": _Parts.chain,
    "standing": _Parts.standing,
    "network": _Parts.network,
    "log": _Parts.log,
    "arrays": _Parts.arrays,
    "peers": _Parts.peers,
}


def meets(name: str, value: float) -> bool | None:
    """Whether a figure is as good as its goal; None if it has none."""
    if name not in GOALS:
        return None
    how, goal = GOALS[name]
    return {"<": value < goal, "<=": value <= goal, ">=": value >= goal}[how]


def show(figures: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table("figure", "value", "goal", "")
    for name, value in figures.items():
        how, goal = GOALS.get(name, ("", ""))
        word = {True: "reached", False: "MISSED", None: ""}[meets(name, value)]
        table.add_row(name, str(value), f"{how} {goal}".strip(), word)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
