"""What becomes of the files that an analysis leaves: outputs, artifacts, and what nobody declared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from girder_worker_singularity.run.image_rules import image_spellings
from girder_worker_slurm.errors import JobCancelled, OutputRefused
from girder_worker_slurm.girder import inputs, outputs
from girder_worker_slurm.girder.new_files import upload_new_files
from girder_worker_slurm.girder.upload_turn import UploadTurn
from girder_worker_slurm.records.record import directory_name, write_durably

if TYPE_CHECKING:
    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.job.girder_side import GirderSide
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services, StoryRules

#: In a job's record: what its result hooks gave.
RESULT_FILE = "result.json"


class Delivery:
    """Brings files to Girder. A step that cannot go on raises as the others do: see `run_job`."""

    def __init__(self, services: Services, rules: StoryRules, girder: GirderSide) -> None:
        self._do = services
        self._rules = rules
        self._girder = girder

    def bring_outputs(self, job: LiveJob) -> None:
        """Uploads each output that is not in Girder yet, and keeps what the hooks gave for the task's result."""
        decoded = self._do.decoded(job)
        results: list[object] = []
        # Without a hook nothing goes anywhere, and another user's volume is not copied for it.
        if decoded.hooks:
            try:
                results = self._run_hooks(job, decoded)
            except JobCancelled:
                if not job.state.cancel:
                    job.record.append("cancel", why=job.cancel_seen or "in Girder")
        write_durably(job.record.path / RESULT_FILE, json.dumps(results, default=str), sync=False)

    def _run_hooks(self, job: LiveJob, decoded: DecodedTask) -> list[object]:
        self._girder.ask_if_wanted(job)
        at = self._outputs(job)
        turn = UploadTurn(self._do.clock, self._do.checker(job), job.others_wait)
        results = outputs.deliver(
            job.record,
            decoded,
            at=at,
            name=directory_name(job.task_id),
            api_url=self._rules.staging.api_url,
            check=turn.check,
            progressed=turn.progressed,
        )
        if self._keeps_new_files(job):
            self._keep_new_files(job, decoded, at)
        return results

    def bring_artifacts(self, job: LiveJob) -> None:
        """Uploads what a failed analysis left for those who look for the reason. Nothing of it is owed to anybody."""
        decoded = self._do.decoded(job)
        keeps_new_files = job.state.started is not None and self._keeps_new_files(job)
        if not outputs.hooks_for_failure(decoded) and not keeps_new_files:
            return
        try:
            at = self._outputs(job)
            problems = outputs.after_failure(
                decoded,
                job.record,
                api_url=self._rules.staging.api_url,
                name=directory_name(job.task_id),
                at=at,
                check=self._do.checker(job),
            )
        except OutputRefused as error:
            at, problems = None, [str(error)]
        for problem in problems:
            self._girder.feed(job).note(f"An artifact could not be kept: {problem}")
        if keeps_new_files and at is not None:
            self._keep_new_files(job, decoded, at)

    def _outputs(self, job: LiveJob) -> outputs.OutputPlace:
        """Where they are; raises OutputRefused if they cannot be brought here, however often that is tried."""
        runs, token = self._do.runs_of(job.state), job.state.token
        kept = runs.path(token) / "volume"
        try:
            return outputs.OutputPlace(runs.outputs_place(token, self._do.checker(job)), kept)
        except OSError as error:
            if error.errno not in outputs.REFUSED_ERRORS:
                raise
            msg = f"The outputs cannot be read: {error.strerror} ({error.filename or kept}). They are kept in {kept}."
            raise OutputRefused(msg) from error

    def _keeps_new_files(self, job: LiveJob) -> bool:
        """Whether the site wants what analyses of this image wrote besides their outputs."""
        rules = self._rules.archives
        if not rules.patterns:
            return False
        task = inputs.StagedTask.of_record(job.record.path)
        return task is not None and rules.fit(
            image_spellings(task.image), task.arguments[0] if task.arguments else ""
        )

    def _keep_new_files(self, job: LiveJob, decoded: DecodedTask, at: outputs.OutputPlace) -> None:
        """Uploads what the analysis wrote besides its outputs."""
        said = upload_new_files(
            decoded,
            job.record,
            place=at.place,
            api_url=self._rules.staging.api_url,
            limit_bytes=self._rules.archives.limit_bytes,
            check=self._do.checker(job),
        )
        if said:
            self._girder.feed(job).note(said)
