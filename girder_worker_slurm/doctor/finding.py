"""What a check says: one finding per fact, each with a remedy unless there is nothing to do about it."""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

logger = logging.getLogger(__name__)


class Level(str, enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    #: Not looked at, since something else failed.
    SKIP = "skip"
    #: Jobs run, but something will surprise, or could not be looked at.
    WARN = "warn"
    #: Jobs will not run.
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. A warning or a failure has a remedy, always; nothing else has one."""

    check: str
    level: Level
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.level in (Level.OK, Level.SKIP)) == bool(self.remedy):
            msg = f"The finding {self.found!r} of level {self.level.value} has the remedy {self.remedy!r}."
            raise ValueError(msg)

    def as_json(self) -> dict[str, str]:
        """The finding for machines."""
        return {
            "check": self.check,
            "level": self.level.value,
            "found": self.found,
            "remedy": self.remedy,
        }

    def __str__(self) -> str:
        return f"{self.check}: {self.found} {self.remedy}".strip()


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def skip(check: str, found: str) -> Finding:
    """Nobody knows: what it needs has failed, and that has a remedy."""
    return Finding(check, Level.SKIP, found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """Jobs run, but somebody should look."""
    return Finding(check, Level.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """Jobs will not run."""
    return Finding(check, Level.FAIL, found, remedy)


@dataclass(frozen=True)
class Check:
    """Something that can be looked at. It is passed over when one that it needs has failed."""

    name: str
    run: Callable[[], Iterable[Finding]]
    needs: tuple[str, ...] = ()


def run_checks(
    checks: Sequence[Check], *, hide: Callable[[str], str] = lambda text: text
) -> Iterator[Finding]:
    """The findings of these checks, as they come; `hide` takes secrets out of every text."""
    failed: set[str] = set()
    for check in checks:
        for finding in _findings(check, failed):
            if finding.level is Level.FAIL:
                failed.add(check.name)
            yield Finding(finding.check, finding.level, hide(finding.found), hide(finding.remedy))


def _findings(check: Check, failed: set[str]) -> Iterator[Finding]:
    missing = [name for name in check.needs if name in failed]
    if missing:
        failed.add(check.name)
        yield skip(check.name, f"Not looked at, since this failed: {', '.join(missing)}.")
        return
    try:
        yield from check.run()
    except Exception as error:
        logger.debug("Check %s failed", check.name, exc_info=True)
        yield fail(
            check.name,
            f"The check itself failed: {type(error).__name__}: {error}.",
            "Report this as a bug, with what `girder-slurm --debug doctor` prints.",
        )
