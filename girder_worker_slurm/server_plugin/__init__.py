"""The optional plugin of the Girder server: settings `worker_slurm.*`, and what a job's token may ask about itself.

The entry point `worker_slurm` of the group ``girder.plugin``. It is loaded wherever this distribution is installed beside
a Girder server, and a plugin that fails keeps the server from starting: so importing it imports only Girder's own base
class, and loading it catches what goes wrong. The worker never imports it, and it imports nothing of the worker but
what is pure: `pip install --no-deps` is enough for it.
"""

from __future__ import annotations

import logging
from typing import Any

from girder.plugin import GirderPlugin

__all__ = ["WorkerSlurmPlugin"]

logger = logging.getLogger(__name__)


class WorkerSlurmPlugin(GirderPlugin):  # type: ignore[misc] # Girder has no types
    """Settings for the Slurm worker."""

    DISPLAY_NAME = "Worker Slurm"

    def load(self, info: dict[str, Any]) -> None:
        """Adds settings and endpoint to the server that `info` describes; logs what keeps it from doing so."""
        try:
            from girder_worker_slurm.server_plugin.endpoint import WorkerSlurm  # noqa: PLC0415 - may fail
            from girder_worker_slurm.server_plugin.stored import register_settings  # noqa: PLC0415

            register_settings()
            info["apiRoot"].worker_slurm = WorkerSlurm()
        except Exception:
            logger.exception("The plugin worker_slurm does not work in this Girder, which goes on without it")
