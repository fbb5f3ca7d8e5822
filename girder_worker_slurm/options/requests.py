"""Where the options of one job come from: what each place says, as layers, the later ones winning. Pure.

::

    [slurm.options]  <  Girder's settings  <  [slurm.profiles]  <  the mapping of users
                     <  Docker's limits and GPUs  <  the account of the mapping of users  <  labels of the image
                     <  docker-params of the CLI, key `slurm`  <  the CLI's own arguments --slurm_*
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.arguments import PREFIX
from girder_worker_slurm.options.catalogue import (
    NOT_SLURM_S,
    OPTIONS,
    USUALLY_ALLOWED,
    Kind,
    is_reserved,
)
from girder_worker_slurm.options.layers import AllowedOptions, Layer, option_lines, option_name, option_pairs
from girder_worker_slurm.options.limits import Limits
from girder_worker_slurm.options.values import checked, gpus_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

SITE = "[slurm.options]"
DOCKER = "Docker's options of the task"
GPU_OPTIONS = "[slurm.gpu_options]"
LABEL_PREFIX = "slurm."
_PARAMETERS = "docker-params of the CLI"
HOOKS = ("module", "prerun", "postrun")
"""What a profile may hold besides sbatch options, each as often as one likes."""
_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_GPU_NAMES = ("gres", "gpus", "gpus-per-node", "gpus-per-task")


@dataclass(frozen=True)
class Profile:
    """More options and hooks for some images, or for some CLIs of them."""

    pattern: str
    options: tuple[tuple[str, str], ...]
    hooks: tuple[tuple[str, str], ...] = ()
    """Lines of `module`, `prerun` and `postrun`, which may be there more than once."""

    def fits(self, image_names: Sequence[str], cli: str) -> bool:
        """Whether it is for this CLI of an image that is spelt in any of these ways."""
        image, _, clis = self.pattern.partition(" ")
        return any(fnmatch.fnmatchcase(name, image) for name in image_names) and (
            not clis or fnmatch.fnmatchcase(cli, clis.strip())
        )


@dataclass(frozen=True)
class OptionRules:
    """What a site says about the options of jobs."""

    site: tuple[tuple[str, str], ...] = ()
    profiles: tuple[Profile, ...] = ()
    allowed: AllowedOptions = field(default_factory=lambda: AllowedOptions(frozenset(USUALLY_ALLOWED)))
    limits: Limits = field(default_factory=Limits)
    girder: Mapping[str, object] = field(default_factory=dict)
    """What Girder's settings say, as Girder tells it: unchecked."""
    girder_allowed: AllowedOptions = field(default_factory=lambda: AllowedOptions(frozenset(USUALLY_ALLOWED)))
    """What they may name."""
    personal: tuple[Layer, ...] = ()
    """What the site says about the user whose job it is."""
    personal_above: tuple[Layer, ...] = ()
    """What of it also counts for jobs with GPUs, whatever the site's options for these."""


def parse_profile(pattern: str, text: str) -> Profile:
    """A profile of the configuration; raises ValueError if it sets nothing, or what only the worker may set."""
    lines = option_lines(text)
    options = tuple((name, value) for name, value in lines if name not in HOOKS)
    if not lines:
        msg = "sets no option; write one a line, `name = value`"
        raise ValueError(msg)
    check_site_options(options)
    return Profile(pattern, options, tuple((name, value) for name, value in lines if name in HOOKS))


def check_site_options(options: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError for what no job could be submitted with; the rest of a site's options is for Slurm to judge."""
    for written, value in options:
        name = option_name(written)
        if not _NAME.fullmatch(name):
            msg = f"`{written}` is no name of an sbatch option; write one a line, `name = value`"
            raise ValueError(msg)
        if is_reserved(name):
            msg = f"sets `{written}`, which only the worker itself may"
            raise ValueError(msg)
        option = OPTIONS.get(name)
        if option is not None and option.kind not in (Kind.FLAG, Kind.OPTIONAL) and not value.strip():
            msg = f"sets `{written}` to nothing; it takes {option.kind.value}"
            raise ValueError(msg)
        if option is not None and name in NOT_SLURM_S:
            try:
                checked(option.kind, value)
            except ValueError as error:
                msg = f"sets `{written}` to {value!r}, which {error}"
                raise ValueError(msg) from error
        if "\n" in value:
            msg = f"sets `{written}` to several lines"
            raise ValueError(msg)


def parse_allowed(names: Sequence[str]) -> AllowedOptions:
    """What requests may name; raises ValueError for a name that sbatch does not have or only the worker may set."""
    for name in names:
        if is_reserved(option_name(name)) or option_name(name) not in OPTIONS:
            msg = (
                f"`{name}` is no option of sbatch that can be chosen; there are {', '.join(sorted(OPTIONS))}"
            )
            raise ValueError(msg)
    return AllowedOptions(frozenset(option_name(name) for name in names))


def site_layers(rules: OptionRules, image_names: Sequence[str], cli: str) -> tuple[Layer, ...]:
    """What the site says for every job, for this image and CLI, and for this user."""
    profiles = (profile for profile in rules.profiles if profile.fits(image_names, cli))
    return (
        Layer(SITE, rules.site),
        *(Layer(f"[slurm.profiles] {p.pattern}", p.options) for p in profiles),
        *rules.personal,
    )


def profile_hooks(rules: OptionRules, image_names: Sequence[str], cli: str) -> tuple[tuple[str, str], ...]:
    """The hooks of all profiles for this image and CLI, in their order."""
    fitting = (profile for profile in rules.profiles if profile.fits(image_names, cli))
    return tuple(line for profile in fitting for line in profile.hooks)


def label_layer(labels: Mapping[str, str]) -> Layer:
    """What the image's author says: labels such as `slurm.mem`."""
    said = tuple(
        (name.removeprefix(LABEL_PREFIX), value)
        for name, value in labels.items()
        if name.startswith(LABEL_PREFIX) and name != LABEL_PREFIX
    )
    return Layer("The label slurm.{name} of the image", said, is_request=True)


def docker_layers(
    before: Sequence[tuple[str, str]],
    after: Sequence[tuple[str, str]],
    *,
    of_site: AbstractSet[str] = frozenset(),
    of_girder: Mapping[str, str] | None = None,
    tasks_of_shape: str = "",
) -> tuple[Layer, ...]:
    """What Docker's limits and GPUs add to the options before them; the site allows them as a whole or not at all.

    `of_site` are names of options that the site itself adds to jobs with GPUs, whatever these ask for, `of_girder`
    those that Girder's settings add, and where they come from; `tasks_of_shape` is how many tasks a shape below leads to.
    """
    girder = of_girder or {}
    added = [pair for pair in after if pair not in before]
    if "cpus-per-task" in dict(added):
        # It takes the place of a shape's `cpus`, from which the number of tasks may have come.
        added += [pair for pair in before if pair == ("ntasks", tasks_of_shape)]
    return (
        Layer(
            DOCKER,
            tuple(pair for pair in added if pair[0] not in of_site and pair[0] not in girder),
            is_request=True,
            is_restricted=False,
        ),
        Layer(GPU_OPTIONS, tuple(pair for pair in added if pair[0] in of_site and pair[0] not in girder)),
        *(
            # How many GPUs is the job's own wish.
            Layer(girder[pair[0]], (pair,), is_request=pair[0] == "gres", is_restricted=False)
            for pair in added
            if pair[0] in girder
        ),
    )


def task_layers(parameters: Any, arguments: Sequence[tuple[str, str]]) -> tuple[Layer, ...]:
    """What Girder's administrator (`docker-params`) and the user (`--slurm_*`) say; raises OptionRefused."""
    if not isinstance(parameters, dict):
        msg = f"{_PARAMETERS}: `slurm` is {parameters!r}, which is not a set of options."
        raise OptionRefused(msg)
    try:
        pairs = option_pairs(parameters)
    except ValueError as error:
        raise OptionRefused(f"{_PARAMETERS}: {error}.") from error
    return (
        Layer(f"{_PARAMETERS}, slurm.{{name}}", pairs, is_request=True),
        Layer(f"The argument {PREFIX}{{name}}", tuple(arguments), is_request=True),
    )


def gpus_requested(layers: Sequence[Layer]) -> int:
    """How many GPUs requests name, so that the container gets to see them; the last that names some counts."""
    for layer in reversed(layers):
        named = [(option_name(name), value) for name, value in layer.options if layer.is_request]
        found = [
            gpus_of(name if name == "gres" else "gpus", value) for name, value in named if name in _GPU_NAMES
        ]
        if found:
            return max(found)
    return 0
