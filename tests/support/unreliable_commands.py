"""Slurm's real commands, of which one can be made to misbehave: they stand before the real ones on a worker's PATH."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stack import Stack

_COMMAND = """#!/bin/sh
case "$(cat {fault} 2>/dev/null)" in
  banner) echo '*** Maintenance on Sunday ***' ;;
  garbage) printf '\\001|\\377|~\\n7|\\n'; exit 0 ;;
  empty) exit 0 ;;
  partial) {real} "$@" | head -c 150; exit 0 ;;
  refused) echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1 ;;
  hangs) exec sleep 600 ;;
  answer-lost) {real} "$@" >/dev/null 2>&1; echo 'error: Socket timed out on send/recv operation' >&2; exit 1 ;;
esac
exec {real} "$@"
"""

#: How each command may misbehave.
WAYS = {
    "squeue": ("banner", "garbage", "empty", "partial", "refused", "hangs"),
    "sbatch": ("banner", "refused", "answer-lost"),
    "scontrol": ("banner", "garbage", "empty", "partial", "refused"),
    "scancel": ("refused", "answer-lost"),
}


class UnreliableCommands:
    """A directory for the beginning of PATH."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        self.directory = directory
        path = stack.user_environment()["PATH"]
        self.path = f"{directory}:{path}"
        directory.mkdir(mode=0o755)
        for name in WAYS:
            command = directory / name
            command.write_text(
                _COMMAND.format(fault=self._fault(name), real=shutil.which(name, path=path)), encoding="utf-8"
            )
            command.chmod(0o755)

    def _fault(self, command: str) -> Path:
        return self.directory / f"{command}.fault"

    @contextmanager
    def misbehave(self, command: str, how: str) -> Iterator[None]:
        """One command misbehaves for as long as the block lasts."""
        if how not in WAYS[command]:
            raise ValueError(how)
        self._fault(command).write_text(how, encoding="utf-8")
        try:
            yield
        finally:
            self._fault(command).unlink()
