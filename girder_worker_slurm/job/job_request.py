"""What one job asks of Slurm at last: all who have a say, one after the other, within the site's limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.run.image_rules import SMALLEST_OVERLAY_MIB, image_spellings
from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.catalogue import OVERLAY, SHAPE_NAMES
from girder_worker_slurm.options.girder_settings import girder_layer
from girder_worker_slurm.options.layers import ChosenOption, choose
from girder_worker_slurm.options.limits import check_limits, nodes_within
from girder_worker_slurm.options.partitions import time_within, used_partitions, without_memory
from girder_worker_slurm.options.requests import (
    docker_layers,
    gpus_requested,
    label_layer,
    profile_hooks,
    site_layers,
    task_layers,
)
from girder_worker_slurm.options.shapes import shaped
from girder_worker_slurm.script.resources import fixed_gpu_options, head_options, job_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from girder_worker_singularity.run.docker_options import ResourceWishes
    from girder_worker_slurm.options.layers import Layer
    from girder_worker_slurm.options.limits import Limits
    from girder_worker_slurm.options.partitions import Partition
    from girder_worker_slurm.options.requests import OptionRules

#: Where a record keeps which options its job got, and from whom.
OPTIONS_FILE = "options.json"


@dataclass(frozen=True)
class Chosen:
    """The options that a job gets."""

    options: tuple[ChosenOption, ...]
    unmet: tuple[str, ...] = ()
    """Wishes that the site's own options leave no room for."""
    uncounted: tuple[str, ...] = ()
    """Options of memory that are left out, because Slurm does not know how much its nodes have."""
    passed_over: tuple[str, ...] = ()
    """A sentence about each of Girder's settings that does not count here."""


@dataclass(frozen=True)
class JobRequest:
    """What is asked, before Docker's limits and GPUs are turned into options."""

    below: tuple[Layer, ...]
    """Over which Docker's limits may only raise."""
    above: tuple[Layer, ...]
    """What is said in Slurm's own terms for this job, and wins."""
    rules: OptionRules
    hooks: tuple[tuple[str, str], ...] = ()
    """What the site's profiles do around the container."""

    @property
    def gpus(self) -> int:
        """How many GPUs it names itself."""
        return gpus_requested(self.above)

    @property
    def overlay_mib(self) -> int | None:
        """The size of an overlay that is asked for, 0 for a tmpfs; None if none is. Raises OptionRefused."""
        for option in choose((*self.below, *self.above), self.rules.allowed):
            if option.name == OVERLAY:
                if 0 < (size := int(option.value)) < SMALLEST_OVERLAY_MIB:
                    msg = f"{option.origin}: an overlay has {SMALLEST_OVERLAY_MIB} MiB at least, or 0 for a tmpfs."
                    raise OptionRefused(msg)
                return size
        return None

    def chosen(
        self,
        wishes: ResourceWishes,
        *,
        head: Sequence[str] = (),
        gpu_options: Mapping[str, str] | None = None,
        partitions: Callable[[], Mapping[str, Partition]] = dict,
    ) -> Chosen:
        """The options of the job; raises OptionRefused.

        `partitions` is asked only if something depends on it, and may raise ClusterUnreachable.
        """
        allowed = self.rules.allowed
        site, *later = self.below
        girder = girder_layer(
            self.rules.girder,
            site=(site,),
            later=later,
            allowed=self.rules.girder_allowed,
            limits=self.rules.limits,
            head=head_options(head),
        )
        layers = (site, *girder.layers, *later)
        below = choose(layers, allowed)
        before = tuple((option.name, option.value) for option in shaped(below) if option.name != OVERLAY)
        has_shape = bool(SHAPE_NAMES & {option.name for option in below})
        if wishes.gpus:
            wishes = replace(wishes, gpus=max(wishes.gpus, girder.least_gpus))
        asked = job_options(
            before, wishes, head=head, gpu_options=gpu_options, girder_gpu_options=girder.gpu_options
        )
        docker = docker_layers(
            before,
            asked.options,
            of_site=fixed_gpu_options(gpu_options or {}) if wishes.gpus else frozenset(),
            of_girder=girder.gpu_origins if wishes.gpus else {},
            tasks_of_shape=dict(before).get("ntasks", "") if has_shape else "",
        )
        named = choose((*layers, *docker, *self.above), allowed)
        chosen = shaped([option for option in named if option.name != OVERLAY])
        check_limits(chosen, self.rules.limits, head_options(head))
        chosen = _on_few_nodes(chosen, head, self.rules.limits)
        chosen, left_out = _as_the_partition_has_it(chosen, head, self.rules.limits.time_minutes, partitions)
        return Chosen(chosen, asked.unmet, left_out, girder.passed_over)


def job_request(
    rules: OptionRules,
    *,
    image: str,
    cli: str,
    labels: Mapping[str, str],
    parameters: Mapping[str, Any],
    arguments: Sequence[tuple[str, str]],
) -> JobRequest:
    """What site, image, Girder and user ask for a run of this CLI; raises OptionRefused."""
    names = image_spellings(image)
    return JobRequest(
        below=site_layers(rules, names, cli),
        above=(*rules.personal_above, label_layer(labels), *task_layers(parameters, arguments)),
        rules=rules,
        hooks=profile_hooks(rules, names, cli),
    )


def _on_few_nodes(
    chosen: tuple[ChosenOption, ...], head: Sequence[str], limits: Limits
) -> tuple[ChosenOption, ...]:
    """The options with a number of nodes where Slurm could take more than the limits allow."""
    said = {**head_options(head), **{option.name: option.value for option in chosen}}
    most = nodes_within(said, {option.name for option in chosen if option.is_request}, limits)
    if most is None:
        return chosen
    nodes = ChosenOption("nodes", "1" if most == 1 else f"1-{most}", "[slurm.limits]")
    # Of a range Slurm takes as many as it can have at once, unless it is told not to.
    few = ChosenOption("use-min-nodes", "", "[slurm.limits]")
    return (*chosen, nodes) if most == 1 else (*chosen, nodes, few)


def _as_the_partition_has_it(
    chosen: tuple[ChosenOption, ...],
    head: Sequence[str],
    limit_minutes: float | None,
    partitions: Callable[[], Mapping[str, Partition]],
) -> tuple[tuple[ChosenOption, ...], tuple[str, ...]]:
    """The options with a time where the partition would give more than the limit, and without memory that it cannot count."""
    said = {**head_options(head), **{option.name: option.value for option in chosen}}
    names_memory = any(name.startswith("mem") for name in said)
    if not names_memory and ("time" in said or limit_minutes is None):
        return chosen, ()
    used = used_partitions(said, partitions())
    time = None if "time" in said else time_within(limit_minutes, used)
    return without_memory((*chosen, *([time] if time is not None else [])), used)


def origins_as_json(chosen: Sequence[ChosenOption]) -> list[dict[str, Any]]:
    """The options and where each comes from, as a record keeps them."""
    return [
        {
            "name": option.name,
            "value": option.value,
            "origin": option.origin,
            "instead_of": [list(entry) for entry in option.instead_of],
        }
        for option in chosen
    ]
