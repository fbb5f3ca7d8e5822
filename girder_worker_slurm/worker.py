"""The running worker: its start, its stop, and the house that it keeps meanwhile."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.lease import REFRESH_SECONDS, LeaseLost

if TYPE_CHECKING:
    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.lease import Lease
    from girder_worker_slurm.celery_worker.consumer_switch import ConsumerSwitch
    from girder_worker_slurm.celery_worker.intake import Intake
    from girder_worker_slurm.celery_worker.unhandled import UnhandledMessages
    from girder_worker_slurm.cluster.runs_of_users import RunsOfUsers
    from girder_worker_slurm.job.accounting import Accounting
    from girder_worker_slurm.job.retention import ImageRetention, RemovedImages, Retention
    from girder_worker_slurm.job.slurm_runner import SlurmCommandRunner
    from girder_worker_slurm.job.supervisor import Supervisor
    from girder_worker_slurm.records.jobs_root import JobsRoot
    from girder_worker_slurm.settings import Settings

logger = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 5.0
_EX_TEMPFAIL = 75


@dataclass
class SlurmWorker:
    """All parts of a running worker."""

    settings: Settings
    root: JobsRoot
    clock: Clock
    supervisor: Supervisor
    intake: Intake
    unhandled: UnhandledMessages
    lease: Lease
    retention: Retention
    image_retention: ImageRetention
    removed_images: RemovedImages | None
    conversions: SlurmCommandRunner | None
    accounting: Accounting | None
    runs_as: RunsOfUsers
    _consumers: ConsumerSwitch

    def start(self) -> None:
        """Takes up all unfinished jobs and begins to take new ones."""
        records = list(self.root.own_records())
        self.supervisor.start(records)
        self.intake.start()
        self._stop = threading.Event()
        for name, body in (("gw-lease", self._keep_lease), ("gw-housekeeping", self._keep_house)):
            threading.Thread(target=body, name=name, daemon=True).start()
        logger.info("%d unfinished jobs taken up from %s", len(records), self.root.path)

    def stop(self) -> None:
        """Stops; every job goes on in Slurm."""
        self._stop.set()
        self.intake.stop()
        self.supervisor.stop()
        self.runs_as.close()
        self.lease.release()

    def attach(self, consumer: Any) -> None:
        """Tells which consumer takes messages now."""
        self._consumers.attach(consumer, is_paused=self.intake.is_paused)

    def _keep_lease(self) -> None:
        """Shows that this worker lives. A thread of its own: Slurm, or thousands of files, may keep the others waiting."""
        while not self._stop.wait(REFRESH_SECONDS):
            try:
                self.lease.refresh()
            except LeaseLost:
                # Others saw this worker stand still and carry its jobs now; two must not work under one name.
                logger.critical(
                    "The lease of worker %s was taken over by another: this one stops", self.root.worker_id
                )
                self.supervisor.stop()
                # Not 0, so that a service manager starts it again; nothing is lost, everything is on disk.
                os._exit(_EX_TEMPFAIL)
            except Exception:
                logger.exception("The lease could not be refreshed; it is tried again")

    def _keep_house(self) -> None:
        """Takes over from workers that do not live any more, and removes what is old."""
        while not self._stop.wait(_HOUSEKEEPING_SECONDS):
            try:
                for record in self.root.orphaned_records(self.clock):
                    self.supervisor.accept(record)
                if self.retention.is_due():
                    # Elsewhere: a take-over must not wait for files of other users, or for thousands.
                    self.supervisor.run_in_pool("clean", self.retention.remove_old)
                self.runs_as.close_idle()
                self.image_retention.look_after()
                if self.removed_images is not None:  # after that, which stamps what live jobs use
                    self.removed_images.look_after()
                if self.conversions is not None:
                    self.conversions.end_abandoned()
                if self.accounting is not None and self.accounting.is_due():
                    # Elsewhere: a take-over must not wait for a slow database.
                    self.supervisor.run_in_pool("deliver", self.accounting.look)
            except Exception:
                logger.exception("Housekeeping failed; it is tried again")
