"""Several who may say what a job asks of Slurm, from the site to the user: what counts at last, and who said it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.catalogue import EXCLUSIVE_GROUPS, OPTIONS, is_reserved, long_name
from girder_worker_slurm.options.values import checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_OLD_PREFIX = "sbatch_"
_SHOWN_CHARACTERS = 60
_GPU_OPTIONS = frozenset({"gres", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"})


@dataclass(frozen=True)
class Layer:
    """What one place says."""

    origin: str
    """In the words of the person who looks for it, `{name}` for the option: `The label slurm.{name} of the image`."""
    options: tuple[tuple[str, str], ...]
    is_request: bool = False
    """Whether an image's author or a user says it, for whom the site's limits are."""
    is_restricted: bool = True
    """Whether a request may name only what the site allows."""

    def origin_of(self, name: str) -> str:
        """Where this option of the layer comes from."""
        return self.origin.replace("{name}", name)


@dataclass(frozen=True)
class ChosenOption:
    """An option of a job."""

    name: str
    value: str
    origin: str
    is_request: bool = False
    instead_of: tuple[tuple[str, str, str], ...] = ()
    """What it took the place of: name, value and origin, the latest first."""


@dataclass(frozen=True)
class AllowedOptions:
    """What requests may name. The site itself may set anything that is not the worker's own."""

    names: frozenset[str]

    def check(self, name: str, origin: str) -> None:
        """Raises OptionRefused if a request may not name this option."""
        if name not in self.names:
            raise OptionRefused(
                f"{origin}: the sbatch option `{name}` may not be chosen here; allowed are {', '.join(sorted(self.names))}."
            )


def choose(layers: Sequence[Layer], allowed: AllowedOptions) -> tuple[ChosenOption, ...]:
    """The options of a job: of each the last layer's, in the order in which they were first named.

    Raises OptionRefused for an option that does not exist, may not be asked for, or has a value that cannot be meant.
    """
    chosen: dict[str, ChosenOption] = {}
    for layer in layers:
        named: set[str] = set()
        for written, text in layer.options:
            name = option_name(written)
            value = _checked(name, text, layer, allowed)
            rivals = [other for other in _rivals(name, named) if other in chosen]
            replaced = [chosen.pop(other) for other in rivals if other != name]
            before = chosen.get(name)
            option = ChosenOption(name, value, layer.origin_of(name), layer.is_request)
            gone = [*([before] if before is not None else []), *replaced]
            chosen[name] = replace(option, instead_of=tuple(_history(gone)))
            named.add(name)
    return tuple(chosen.values())


def option_name(written: str) -> str:
    """The long name of an option as configurations write it: `mem`, `c`, `cpus_per_task`, `sbatch_cpus-per-task`."""
    name = written.strip().removeprefix("--").removeprefix(_OLD_PREFIX)
    return long_name(name if len(name) == 1 else name.replace("_", "-"))


def option_pairs(values: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Options that stand in JSON: `true` is a flag, `false` and null say nothing; ValueError for lists and objects."""
    pairs = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        if not isinstance(value, (str, int, float)):
            msg = f"the value of `{name}` is neither text nor a number"
            raise ValueError(msg)  # noqa: TRY004 - it is data, not an argument
        pairs.append((str(name), "" if value is True else str(value)))
    return tuple(pairs)


def option_lines(text: str) -> tuple[tuple[str, str], ...]:
    """Options written one a line, `name = value`, or `name` for a flag."""
    pairs = (line.partition("=") for line in text.splitlines() if line.strip())
    return tuple((name.strip(), value.strip()) for name, _, value in pairs)


def _checked(name: str, text: str, layer: Layer, allowed: AllowedOptions) -> str:
    origin = layer.origin_of(name)
    if is_reserved(name):
        raise OptionRefused(
            f"{origin}: the sbatch option `{name}` is set by the worker itself and cannot be chosen."
        )
    # A site knows its Slurm better than our list does, and plugins add options of their own: Slurm has the word there.
    if not layer.is_request:
        return text
    if layer.is_restricted:
        allowed.check(name, origin)
    option = OPTIONS.get(name)
    if option is None and not layer.is_restricted:
        return text  # of the site's [slurm.gpu_options]
    if option is None:
        raise OptionRefused(f"{origin}: `{name}` is not an option of sbatch that is known here.")
    try:
        return checked(option.kind, text)
    except ValueError as error:
        raise OptionRefused(f"{origin}: the value {_shown(text)} of `{name}` {error}.") from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")


def _rivals(name: str, named: Iterable[str]) -> set[str]:
    """Options that go away when this one is set; of those that the same layer named, only itself."""
    rivals = {name}
    for group in (*EXCLUSIVE_GROUPS, _GPU_OPTIONS):
        if name in group:
            rivals |= group
    return (rivals - set(named)) | {name}


def _history(gone: Iterable[ChosenOption]) -> Iterable[tuple[str, str, str]]:
    for option in gone:
        yield (option.name, option.value, option.origin)
        yield from option.instead_of
