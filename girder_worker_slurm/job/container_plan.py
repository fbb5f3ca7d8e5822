"""A task, its image and the site's rules → how the container is started, and what its job asks of Slurm. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from girder_worker_singularity.run.container import ContainerSpec, passable_environment
from girder_worker_singularity.run.docker_options import NO_WISHES, ResourceWishes
from girder_worker_singularity.run.image_rules import image_spellings, rule_for
from girder_worker_singularity.run.mounts import merge_mounts
from girder_worker_slurm.options.binds import NOBODY, JobOwner, binds_for, outer_first

if TYPE_CHECKING:
    from girder_worker_singularity.image.config import ImageConfig
    from girder_worker_singularity.run.image_rules import ImageRule
    from girder_worker_singularity.run.mounts import Mount
    from girder_worker_slurm.girder.inputs import StagedTask
    from girder_worker_slurm.job.services import ContainerRules
    from girder_worker_slurm.options.binds import SiteBind

#: What the usual numerical libraries read to find out how many threads to start.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
#: How Slurm tells a job its GPUs (`SLURM_JOB_GPUS`), and the libraries of each kind which to use.
GPU_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HIP_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "SLURM_JOB_GPUS",
)
#: What a job learns about itself under names that every scheduler could have, and where Slurm says it. The doubled
#: names and `PROCESS_...` are those of the JARVICE connector; `nodes_apart` is made by the script.
JOB_VARIABLES = {
    "JOB_ID": "SLURM_JOB_ID",
    "JOB_NAME": "SLURM_JOB_NAME",
    "JOB_PARTITION": "SLURM_JOB_PARTITION",
    "JOB_NODELIST": "SLURM_JOB_NODELIST",
    "JOB_NNODES": "SLURM_JOB_NUM_NODES",
    "JOB_NTASKS": "SLURM_NTASKS",
    "JOB_CPUS_ON_NODE": "SLURM_CPUS_ON_NODE",
    "JOB_GPUS_PER_NODE": "SLURM_GPUS_PER_NODE",
    "JOB_JOBID": "SLURM_JOB_ID",
    "JOB_JOB_NODELIST": "SLURM_JOB_NODELIST",
    "JOB_JOB_FORMATED_NODELIST": "nodes_apart",
    "PROCESS_NODENAME": "SLURMD_NODENAME",
    "PROCESS_PROCID": "SLURM_PROCID",
}
_ROOT = frozenset({"root", "0"})


@dataclass(frozen=True)
class ContainerPlan:
    """One container and its job."""

    spec: ContainerSpec
    wishes: ResourceWishes
    overlay_mib: int
    thread_variables: tuple[str, ...]
    gpu_variables: tuple[str, ...]
    #: Variables of the container and those of the job that they are taken from, `NAME=OTHER`.
    job_variables: tuple[str, ...]
    #: Paths that have to be on the node.
    site_paths: tuple[str, ...]
    #: Names of Docker options that the log says are not met.
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class RunPaths:
    """Where the files of one run are."""

    environment: str
    scratch: str
    overlay: str


def container_plan(
    task: StagedTask,
    *,
    sif: str,
    image: ImageConfig,
    rules: ContainerRules,
    paths: RunPaths,
    uid: int,
    owner: JobOwner = NOBODY,
    overlay_mib: int | None = None,
) -> ContainerPlan:
    """How this task is run here.

    `uid` is the job's user, `owner` who runs it in Girder, `overlay_mib` the overlay that the job asks for, 0 for a
    tmpfs. Tasks that want GPUs otherwise say so in `task.wishes`.
    """
    rule = _with_overlay(rule_for(rules.images, task.image), overlay_mib)
    gpus = max(task.wishes.gpus, int(image.needs_nvidia))
    gpu = _gpu(rule, rules) if gpus else None
    writable = "none" if task.read_only else _writable(rule, rules)
    ignored = set(task.ignored_options)
    if not _is_met(task.user, uid, is_root=bool(rule.fakeroot)):
        ignored.add("user")
    if task.wishes.gpus and gpu is None:
        ignored.add("device_requests")
    if not rules.honours_docker_resources and (task.wishes.memory_mib or task.wishes.cpus):
        ignored.add("mem_limit or processors")
    environment, left_out = passable_environment(task.environment)
    ignored |= {f"environment {name!r}" for name in left_out}
    binds = binds_for(rules.binds, image_spellings(task.image), owner=owner)
    spec = ContainerSpec(
        sif=sif,
        image=image,
        mounts=_with_site_data(task.mounts, binds),
        environment=environment,
        environment_file=paths.environment,
        scratch=paths.scratch,
        scratch_mounts=task.scratch_mounts,
        working_dir=task.working_dir,
        entrypoint=task.entrypoint,
        gpu=gpu,
        hostname=task.hostname,
        writable_tmpfs=writable == "tmpfs",
        overlay=paths.overlay if writable == "overlay" else None,
        fakeroot=bool(rule.fakeroot),
        network_none=task.without_network or bool(rule.network_none),
    )
    set_already = {*task.environment, *(pair.partition("=")[0] for pair in image.environment)}
    wishes = task.wishes if rules.honours_docker_resources else NO_WISHES
    return ContainerPlan(
        spec=spec,
        wishes=replace(wishes, gpus=gpus if gpu is not None else 0),
        overlay_mib=(rule.overlay_mib or rules.overlay_mib) if writable == "overlay" else 0,
        thread_variables=tuple(name for name in THREAD_VARIABLES if name not in set_already),
        # Those of the allocation win: the image cannot know which GPU this job was given.
        gpu_variables=()
        if gpu is None
        else tuple(name for name in GPU_VARIABLES if name not in task.environment),
        job_variables=tuple(
            f"{name}={source}" for name, source in JOB_VARIABLES.items() if name not in set_already
        ),
        site_paths=tuple(bind.source for bind in binds),
        ignored=tuple(sorted(ignored)),
    )


def _with_site_data(mounts: tuple[Mount, ...], binds: tuple[SiteBind, ...]) -> tuple[Mount, ...]:
    """The task's mounts and the site's; raises MountInvalid if both want the same place."""
    if not binds:
        return mounts
    return outer_first(merge_mounts((*mounts, *(bind.mount for bind in binds))))


def _gpu(rule: ImageRule, rules: ContainerRules) -> Literal["nv", "rocm"] | None:
    kind = rule.gpu or rules.gpu_kind
    return None if kind == "none" else kind


def _writable(rule: ImageRule, rules: ContainerRules) -> Literal["none", "tmpfs", "overlay"]:
    if rule.writable == "overlay" and not (rule.overlay_mib or rules.overlay_mib):
        return "tmpfs"
    return rule.writable or "none"


def _with_overlay(rule: ImageRule, overlay_mib: int | None) -> ImageRule:
    """The image's rule with the overlay that a job asks for."""
    if overlay_mib is None:
        return rule
    return replace(rule, writable="overlay" if overlay_mib else "tmpfs", overlay_mib=overlay_mib or None)


def _is_met(user: str | None, uid: int, *, is_root: bool) -> bool:
    """Whether the container runs as the user that Docker would have given it."""
    if user is None:
        return True
    name = user.partition(":")[0]
    return is_root if name in _ROOT and uid != 0 else name == str(uid)
