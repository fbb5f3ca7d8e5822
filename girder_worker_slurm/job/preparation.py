"""From a message to a job that can be submitted: inputs in the run directory, the SIF, the script."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import SifDamaged
from girder_worker_singularity.run.container import (
    container_arguments,
    container_argv,
    container_environment,
    default_arguments,
    environment_file_text,
    overlay_argv,
)
from girder_worker_singularity.sif.use import take
from girder_worker_slurm.errors import NotSupported
from girder_worker_slurm.girder import inputs
from girder_worker_slurm.girder.datalist import is_datalist_request
from girder_worker_slurm.girder.gpu_argument import gpus_asked_for
from girder_worker_slurm.girder.ingest import read_descriptions
from girder_worker_slurm.job.container_plan import RunPaths, container_plan
from girder_worker_slurm.job.services import DIRECT, Parked
from girder_worker_slurm.records.record import directory_name, write_durably
from girder_worker_slurm.script.render import (
    JobScript,
    argument_file,
    forbidden_head_option,
    render_script,
    sbatch_head,
)
from girder_worker_slurm.script.resources import job_options

if TYPE_CHECKING:
    from girder_worker_singularity.run.container import ContainerSpec
    from girder_worker_singularity.sif.store import Sif
    from girder_worker_slurm.job.container_plan import ContainerPlan
    from girder_worker_slurm.job.girder_side import GirderSide
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services, StoryRules


class Preparation:
    """The steps before a job is submitted."""

    def __init__(self, services: Services, rules: StoryRules, girder: GirderSide) -> None:
        self._do = services
        self._rules = rules
        self._girder = girder

    def stage(self, job: LiveJob) -> None:
        """Begins an attempt and brings the inputs into its run directory."""
        decoded = self._do.decoded(job)
        state = job.state
        if not state.token:
            token = f"{self._rules.token_prefix}{secrets.token_hex(10)}"
            log = (
                self._rules.logs_dir / f"{directory_name(job.task_id)}.log" if self._rules.logs_dir else None
            )
            path = self._do.runs.path(token)
            state = job.record.append(
                "attempt",
                number=state.attempt + 1,
                token=token,
                nonce=secrets.token_hex(16),
                log_path=str(log or path / "output.log"),
            )
        # What an interrupted staging left is not trusted.
        self._do.runs.remove(state.token)
        run = self._do.runs.create(state.token)
        self._do.runs.write(state.token, "nonce", state.nonce.encode())
        task = inputs.stage(
            decoded,
            run=run,
            name=directory_name(job.task_id),
            rules=self._rules.staging,
            check=self._do.checker(job),
        )
        write_durably(job.record.path / "task.json", json.dumps(task.as_json()), sync=False)
        job.record.append("staged", cluster=DIRECT if self._is_waited_for(job, task) else "")

    def render(self, job: LiveJob) -> None:
        """Finds the image's SIF and writes script, argument file and environment file."""
        state = job.state
        task = inputs.StagedTask.from_json(
            json.loads((job.record.path / "task.json").read_text(encoding="utf-8"))
        )
        sif = job.sif or self._sif_at_hand(task)
        if sif is None or not take(sif.path, self._do.clock):
            raise Parked(task.image, task.pull_policy)
        job.sif = None
        run = self._do.runs.path(state.token)
        plan = container_plan(
            self._with_gpu_argument(task, sif),
            sif=str(sif.path),
            image=sif.config,
            rules=self._rules.containers,
            paths=RunPaths(*(str(run / name) for name in ("environment", "scratch", "scratch/overlay.img"))),
            uid=os.getuid(),
        )
        spec = plan.spec
        self._do.runs.write(
            state.token, "environment", environment_file_text(container_environment(spec)).encode()
        )
        try:
            data = argument_file(task.arguments or default_arguments(spec))
        except ValueError as error:
            raise NotSupported(str(error)) from error
        self._do.runs.write(state.token, "arguments", data)
        head, container = self._container(state.token, spec)
        script = JobScript(
            token=state.token,
            run=str(run),
            spool=str(self._do.runs.spool),
            log=state.log_path,
            scratch=str(run / "scratch"),
            container=container,
            sbatch_head=head,
            thread_variables=plan.thread_variables,
            gpu_variables=plan.gpu_variables,
            overlay=spec.overlay or "",
            make_overlay=self._make_overlay(plan),
        )
        self._do.runs.write(state.token, "job.slurm", render_script(script).encode(), mode=0o700)
        asked = job_options(
            self._rules.slurm_options,
            plan.wishes,
            head=head,
            gpu_options=self._rules.containers.gpu_options,
        )
        self._say_what_is_not_met(job, plan.ignored, asked.unmet)
        # What all jobs have is not repeated in each record.
        job.record.append(
            "rendered",
            sif=str(sif.path),
            options=None if asked.options == self._rules.slurm_options else asked.options,
        )

    def _with_gpu_argument(self, task: inputs.StagedTask, sif: Sif) -> inputs.StagedTask:
        """The task, which wants GPUs if its argument `--gpu` says so."""
        if not task.arguments:
            return task
        cli, *rest = task.arguments
        description = read_descriptions(self._rules.jobs_root, sif.path.name).get(cli, "")
        gpus = max(task.wishes.gpus, gpus_asked_for(rest, description))
        return replace(task, wishes=replace(task.wishes, gpus=gpus))

    def _make_overlay(self, plan: ContainerPlan) -> tuple[str, ...]:
        spec = plan.spec
        if spec.overlay is None:
            return ()
        return overlay_argv(
            spec.overlay, plan.overlay_mib, fakeroot=spec.fakeroot, apptainer=self._rules.apptainer
        )

    def _say_what_is_not_met(self, job: LiveJob, ignored: tuple[str, ...], unmet: tuple[str, ...]) -> None:
        if ignored:
            self._girder.feed(job).note(
                f"These Docker options have no counterpart on a cluster: {', '.join(ignored)}."
            )
        if unmet:
            self._girder.feed(job).note(f"The site's own sbatch options decide about {', '.join(unmet)}.")

    def _sif_at_hand(self, task: inputs.StagedTask) -> Sif | None:
        return self._do.images.find_for(task.image, task.pull_policy)

    def _container(self, token: str, spec: ContainerSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is started on the node: Apptainer itself, or the site's script with Apptainer's arguments."""
        site = self._rules.submit_script
        if site is None:
            return (), container_argv(spec, apptainer=self._rules.apptainer)
        try:
            text = site.read_bytes()
        except OSError as error:
            msg = f"The site's submit script {site} cannot be read: {error.strerror}."
            raise NotSupported(msg) from error
        copy = self._do.runs.write(token, "site.slurm", text, mode=0o700)
        start = (str(copy),) if text.startswith(b"#!") else ("/bin/bash", str(copy))
        head = sbatch_head(text.decode("utf-8", errors="replace"))
        if (forbidden := forbidden_head_option(head)) is not None:
            msg = f"The site's submit script {site} sets `{forbidden}` in its #SBATCH head, which only the worker may."
            raise NotSupported(msg)
        return head, (*start, *container_arguments(spec))

    def _is_waited_for(self, job: LiveJob, task: inputs.StagedTask) -> bool:
        """Whether Girder keeps a form waiting for this run: it must not wait in the queue."""
        if self._do.decoded(job).hooks or not task.arguments:
            return False
        try:
            sif = self._do.images.find(task.image)
        except SifDamaged:
            return False
        if sif is None:
            return False
        description = read_descriptions(self._rules.jobs_root, sif.path.name).get(task.arguments[0], "")
        return is_datalist_request(task.arguments[1:], description)
