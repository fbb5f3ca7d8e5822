"""What became of each job, compared with what may become of it. Pure: all that was seen is handed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.girder_site import CANCELED, ERROR, FINAL, SUCCESS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Its first and its last line, whatever its exit code.
STARTS, ENDS = "toy starts", "toy ends"
#: By this, the log tells one attempt from the next.
NEXT_TRY = "It is submitted anew"


@dataclass
class SoakJob:
    """One job, what was asked of it, and what was done to it."""

    girder_id: str
    output: str
    code: int = 0
    is_cancelled: bool = False
    #: Faults that end an analysis and that no worker could mend: somebody's `scancel`, a killed script.
    ended_by: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What Girder and the worker's record say about a job that has ended."""

    status: int
    log: str
    #: The node of each container that was started, attempt by attempt.
    started: Sequence[str]
    attempts: int


def complaints(job: SoakJob, seen: Seen) -> list[str]:
    """What is wrong with the end of one job; empty if all is well."""
    found = []
    last_attempt = seen.log.rpartition(NEXT_TRY)[2]
    came_to_its_end = ENDS in last_attempt
    if seen.status not in FINAL:
        found.append(f"has not ended: status {seen.status}")
    if len(seen.started) > seen.attempts:
        found.append(f"{len(seen.started)} containers started in {seen.attempts} attempts")
    if seen.log.count(STARTS) > len(seen.started) or last_attempt.count(STARTS) > 1:
        found.append("is in the log twice")
    if seen.attempts > 1 + seen.log.count("Try "):
        found.append(f"{seen.attempts} attempts of which the log says nothing")
    if seen.status == SUCCESS and (job.code or not came_to_its_end):
        found.append("a success that it is not")
    if seen.status == ERROR:
        if came_to_its_end and not job.code and not job.ended_by:
            found.append("an error although the analysis ended well")
        elif not came_to_its_end and not job.ended_by:
            found.append("an error although nothing ended the analysis")
        elif (
            came_to_its_end and job.code and not job.ended_by and f"exit code {job.code}" not in last_attempt
        ):
            found.append(f"exit code {job.code} is not told")
    if seen.status == CANCELED and not job.is_cancelled:
        found.append("canceled although nobody asked for it")
    return found


def output_complaints(jobs: Iterable[tuple[SoakJob, int]], there: Sequence[str]) -> list[str]:
    """Outputs that are missing, that should not be there, or that are there twice; `jobs` with their status."""
    wanted = {job.output for job, status in jobs if status == SUCCESS}
    # A cancel may come while the output is on its way, a failed analysis may leave one.
    possible = {job.output for job, status in jobs if status != SUCCESS}
    found = [f"output {name} is missing" for name in sorted(wanted - set(there))]
    found += [
        f"output {name} is there {there.count(name)} times"
        for name in sorted(set(there))
        if there.count(name) > 1
    ]
    return found + [f"output {name} is nobody's" for name in sorted(set(there) - wanted - possible)]
