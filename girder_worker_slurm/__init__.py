"""Run the container tasks of a Girder 5 server as Slurm jobs.

This module is the entry point of the group ``girder_worker_plugins``. The same distribution is loaded inside
the Girder server and inside its ``-Q local`` worker, where a failing plugin would stop the whole process:
so loading it imports nothing of weight, changes nothing and cannot fail.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SlurmPlugin", "is_enabled"]

#: Any of these in the environment means: this worker was started to serve a Slurm cluster.
_ENABLING_VARIABLES = ("GIRDER_WORKER_SLURM_SUBMIT_SCRIPT", "SIF_IMAGE_PATH")
_OFF = frozenset({"", "0", "false", "no", "off"})


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Whether a worker with this environment serves Slurm: started by ``worker/run.sh``, or set up like it."""
    wanted = environment.get("GIRDER_WORKER_SLURM_ENABLED")
    if wanted is not None:
        return wanted.strip().lower() not in _OFF
    return any(environment.get(name, "").strip() for name in _ENABLING_VARIABLES)


class SlurmPlugin:
    """The plugin as Girder Worker's plugin loader wants it: built with the Celery app, then asked for modules."""

    def __init__(self, app: Any, *_args: Any, **_kwargs: Any) -> None:
        self.app = app

    def task_imports(self) -> list[str]:
        """The modules a worker imports before it starts; none where Slurm is not served."""
        if not is_enabled(os.environ):
            return []
        return ["girder_worker_slurm.celery_worker.bootsteps"]
