"""Brings to Girder what it refused when the job ended, with another token: outputs, the rest of the log, the end.

For ended jobs only, which no worker carries any more. May be broken off at any point and begun again: what Girder has
got is recorded in the job's own record, as during its life.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_slurm.celery_worker.admitted_objects import STOCK_CLASSES
from girder_worker_slurm.celery_worker.message import decode
from girder_worker_slurm.errors import NothingOwed
from girder_worker_slurm.girder import outputs
from girder_worker_slurm.girder.inputs import walk
from girder_worker_slurm.girder.job_updates import JobStatus, TransitionRefused
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.job.state import Outcome, Phase, Verdict
from girder_worker_slurm.job.verdict import final_outcome, owed_to_girder
from girder_worker_slurm.records.record import directory_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.cluster.run_files import RunFiles
    from girder_worker_slurm.girder.job_updates import JobUpdates
    from girder_worker_slurm.job.state import GirderJob
    from girder_worker_slurm.records.record import Record

logger = logging.getLogger(__name__)

_STATUS = {
    Outcome.SUCCESS: JobStatus.SUCCESS,
    Outcome.ERROR: JobStatus.ERROR,
    Outcome.CANCELED: JobStatus.CANCELED,
}


@dataclass(frozen=True)
class Delivered:
    """What became of it."""

    outputs: int
    """Files of outputs that Girder has now."""
    status: int
    """The state that Girder shows, which may be one that it lets no job leave."""
    end: Verdict


class LateDelivery:
    """One ended job and one token. Raises NothingOwed where there is nothing to bring."""

    def __init__(
        self,
        runs: RunFiles,
        record: Record,
        *,
        token: str,
        updates: JobUpdates,
        admitted_classes: Collection[str] = STOCK_CLASSES,
        api_url: str = "",
        log_limit_bytes: int = 3_000_000,
    ) -> None:
        state = record.state
        if state.phase is not Phase.CLOSED:
            msg = f"Job {record.task_id} has not ended yet: its worker brings the outputs itself."
            raise NothingOwed(msg)
        if state.girder is None or not owed_to_girder(state):
            msg = f"Girder has all of job {record.task_id}: there is nothing to bring."
            raise NothingOwed(msg)
        self._record = record
        self._runs = runs
        self._girder: GirderJob = replace(state.girder, token=token)
        self._admitted = admitted_classes
        self._updates = updates
        self._api_url = api_url
        self._log_limit_bytes = log_limit_bytes

    def bring(self) -> Delivered:
        """Uploads what is missing, then tells the end.

        Raises GirderUnreachable, OutputRefused and AccessRefused (this token may not do it either), JobDeleted.
        """
        state = self._record.state
        # First, at no price: a token that may not touch the job would leave it half done.
        self._updates.update(self._girder)
        end = final_outcome(state)
        if state.owes_outputs:
            outputs.deliver(
                self._record,
                self._decoded(),
                at=outputs.OutputPlace(
                    self._runs.outputs_place(state.token, _nothing_stops_it),
                    self._runs.path(state.token) / "volume",
                ),
                name=directory_name(self._record.task_id),
                api_url=self._api_url,
                check=_nothing_stops_it,
            )
            end = Verdict(
                Outcome.SUCCESS,
                "completed",
                f"Slurm job {state.slurm_job_id} completed. Its outputs were uploaded later, with girder-slurm retry-upload.",
            )
        status = self._tell(end)
        self._record.append("told_late")
        if end is not final_outcome(state):
            # Last: from here on nothing is owed any more.
            self._record.decide(end)
        return Delivered(len(self._record.state.uploaded), status, end)

    def _decoded(self) -> DecodedTask:
        decoded = decode(self._record.message(), self._admitted)
        for hook in walk(list(decoded.hooks)):
            if hasattr(getattr(hook, "gc", None), "urlBase"):
                hook.gc.token = self._girder.token
        return decoded

    def _tell(self, end: Verdict) -> int:
        """Sends the rest of the log and the state; returns the state that Girder shows then."""
        state = self._record.state
        feed = LogFeed(
            self._record.path,
            Path(state.log_path) if state.log_path else None,
            self._runs,
            limit_bytes=self._log_limit_bytes,
        )
        if feed.has_doubt:
            feed.settle_doubt(self._updates.log(self._girder))
        feed.note(end.sentence)
        while (update := feed.next_update()) is not None:
            self._updates.update(self._girder, log=update.text, overwrite=update.overwrite)
            feed.update_arrived(update)
        status = _STATUS[end.outcome]
        try:
            return self._updates.update(
                self._girder, status=status, progress=1.0 if status is JobStatus.SUCCESS else None
            ).status
        except TransitionRefused as error:
            logger.info("Girder keeps the state of job %s: %s", self._record.task_id, error)
            return self._updates.update(self._girder).status


def _nothing_stops_it() -> None:
    """Nobody cancels a job that has ended."""
