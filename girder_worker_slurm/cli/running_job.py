"""What Slurm says at this moment about a job that runs. A comfort: whoever looks at a job must not wait long for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from girder_worker_slurm.errors import ClusterUnreachable, StartRefused

if TYPE_CHECKING:
    from girder_worker_slurm.cluster.slurm_accounting import UsageSoFar
    from girder_worker_slurm.job.state import JobState
    from girder_worker_slurm.settings import Settings

_PATIENCE_SECONDS = 5.0


def usage_so_far(settings: Settings, state: JobState) -> UsageSoFar | None:
    """What the job has used by now; None if it does not run in Slurm, or if that cannot be learnt here and now."""
    is_running = state.is_in_slurm and state.started is not None and state.ended is None
    # Slurm tells the usage of a job to its own user, and to root.
    if not is_running or state.cluster or (state.unix_user and os.geteuid() != 0):
        return None
    from girder_worker_singularity.clock import SystemClock  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.command_runner import LocalCommandRunner  # noqa: PLC0415
    from girder_worker_slurm.cluster.budget import CallBudget  # noqa: PLC0415
    from girder_worker_slurm.cluster.command_cluster import CommandCluster, CommandOptions  # noqa: PLC0415
    from girder_worker_slurm.cluster.interface import SlurmJobId  # noqa: PLC0415
    from girder_worker_slurm.cluster.run_as import own_name  # noqa: PLC0415
    from girder_worker_slurm.cluster.slurm_module import slurm_environment  # noqa: PLC0415

    runner, clock, slurm = LocalCommandRunner(), SystemClock(), settings.slurm
    try:
        options = CommandOptions(
            own_name(),
            timeout_seconds=_PATIENCE_SECONDS,
            commands_dir=slurm.commands_dir,
            environment=slurm_environment(slurm.slurm_module, runner, os.environ),
        )
        cluster = CommandCluster(runner, clock, CallBudget(slurm.commands_per_second, clock), options)
        return cluster.usage_so_far(SlurmJobId(state.slurm_job_id), state.token)
    except (ClusterUnreachable, StartRefused):
        return None
