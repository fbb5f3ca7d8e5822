"""How many GPUs the arguments of a CLI ask for: the argument `--gpu N`. Pure."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from girder_worker_slurm.girder.datalist import has_flag

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLAG = "--gpu"
_FLAG_WORD = re.compile(r"\bgpu\b")
_MOST_DIGITS = 4


def gpus_asked_for(arguments: Sequence[str], description: str) -> int:
    """N of `--gpu N` or `--gpu=N`, if the CLI declares that argument; 0 for anything that is not a positive number.

    `arguments` are without the CLI's name. An empty description, of a CLI that was not ingested here, declares
    everything. A negative number is no wish: what it means differs between CLIs.
    """
    if description and not _declares(description):
        return 0
    values = [value for flag, value in itertools.pairwise(arguments) if flag == _FLAG]
    values += [word.partition("=")[2] for word in arguments if word.startswith(f"{_FLAG}=")]
    # The last one counts, as for the CLI itself.
    value = values[-1] if values else ""
    return int(value) if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS else 0


def _declares(description: str) -> bool:
    # In JSON and YAML flags stand as words of their own, without the dashes.
    return has_flag(description, _FLAG) or (
        not description.lstrip().startswith("<") and _FLAG_WORD.search(description) is not None
    )
