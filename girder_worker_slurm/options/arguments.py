"""What a CLI's own arguments say about its Slurm job: `--slurm_mem 4G`, `--slurm_mem=4G`, `--slurm_exclusive`. Pure.

A CLI declares them as ordinary parameters with long flags that begin with `slurm_`. They are meant for the worker and
never reach the program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.catalogue import OPTIONS, Kind, long_name

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = "--slurm_"
_END = "--"
_OFF = ("false", "no", "0")


def split_slurm_arguments(arguments: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[tuple[str, str], ...]]:
    """The arguments of the program, and what those for Slurm say: (option, value), in their order.

    What is no text (an input that is still to be fetched) is left alone. A flag never takes the argument that follows it, and nothing is looked at behind `--`. A flag that is said to be
    false, and a value that is empty, say nothing. Raises OptionRefused if an option that needs a value has none.
    """
    kept: list[Any] = []
    said: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == _END:
            kept += [word, *rest]
            break
        if not isinstance(word, str) or not word.startswith(PREFIX):
            kept.append(word)
            continue
        written, equals, value = word.removeprefix(PREFIX).partition("=")
        name = long_name(written.replace("_", "-"))
        option = OPTIONS.get(name)
        if not equals and option is not None and option.kind not in (Kind.FLAG, Kind.OPTIONAL):
            if not rest or str(rest[0]).startswith("--") or not isinstance(rest[0], (str, int, float)):
                msg = f"The argument {PREFIX}{written} has no value; it takes {option.kind.value}."
                raise OptionRefused(msg)
            value = str(rest.pop(0))
            equals = "="
        is_flag = option is not None and option.kind is Kind.FLAG
        if (equals and value.strip() == "" and not is_flag) or (is_flag and value.strip().lower() in _OFF):
            continue
        said.append((name, value))
    return tuple(kept), tuple(said)
