"""From a message to a job that can be submitted: inputs in the run directory, the SIF, the script."""

from __future__ import annotations

import errno
import json
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
from girder_worker_slurm.cluster.user_run_files import UserUnreachable
from girder_worker_slurm.errors import NotSupported, UserRefused
from girder_worker_slurm.girder import inputs
from girder_worker_slurm.girder.datalist import is_datalist_request
from girder_worker_slurm.girder.gpu_argument import gpus_asked_for
from girder_worker_slurm.girder.ingest import read_descriptions
from girder_worker_slurm.girder.token_life import outlives_tokens, warning
from girder_worker_slurm.job.container_plan import RunPaths, container_plan
from girder_worker_slurm.job.job_request import OPTIONS_FILE, job_request, origins_as_json
from girder_worker_slurm.job.services import DIRECT, Parked
from girder_worker_slurm.options.binds import NOBODY, JobOwner
from girder_worker_slurm.options.hooks import launcher_lines, prerun_lines
from girder_worker_slurm.options.values import minutes
from girder_worker_slurm.records.record import directory_name, write_durably
from girder_worker_slurm.script.render import (
    JobScript,
    argument_file,
    forbidden_head_option,
    render_script,
    sbatch_head,
)
from girder_worker_slurm.script.resources import head_options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from girder_worker_singularity.run.container import ContainerSpec
    from girder_worker_singularity.sif.shelf import Sif
    from girder_worker_slurm.celery_worker.message import DecodedTask
    from girder_worker_slurm.cluster.run_files import RunFiles
    from girder_worker_slurm.job.container_plan import ContainerPlan
    from girder_worker_slurm.job.girder_side import GirderSide
    from girder_worker_slurm.job.job_request import Chosen
    from girder_worker_slurm.job.live_job import LiveJob
    from girder_worker_slurm.job.services import Services, StoryRules
    from girder_worker_slurm.job.state import JobState

#: What may keep a file from being read for a while.
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def site_file(path: Path, what: str) -> bytes:
    """A file of the site's that every job needs; raises NotSupported if it cannot be read, OSError if that may pass."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in _PASSING:
            raise
        msg = f"The site's {what} {path} cannot be read: {error.strerror}."
        raise NotSupported(msg) from error


class Preparation:
    """The steps before a job is submitted."""

    def __init__(self, services: Services, rules: StoryRules, girder: GirderSide) -> None:
        self._do = services
        self._rules = rules
        self._girder = girder

    def stage(self, job: LiveJob) -> None:
        """Begins an attempt and brings the inputs into its run directory."""
        decoded = self._do.decoded(job)
        self._ask_for_user_again(job, decoded)
        state = job.state
        if not state.token:
            unix_user = self._rules.unix_user_of(state.user)
            self._reach(unix_user)
            token = f"{self._rules.token_prefix}{secrets.token_hex(10)}"
            number = state.attempt + 1
            state = job.record.append(
                "attempt",
                number=number,
                token=token,
                nonce=secrets.token_hex(16),
                unix_user=unix_user,
                log_path=str(self._log_path(job, unix_user, token, number)),
            )
        self._girder.tell_retries(job)
        # What an interrupted staging left is not trusted.
        runs = self._do.runs_of(state)
        runs.remove(state.token)
        run = runs.create(state.token)
        runs.write(state.token, "nonce", state.nonce.encode())
        place = inputs.StagingPlace(run, runs.inputs_place(state.token), runs.can_read)
        task = inputs.stage(
            decoded,
            to=place,
            name=directory_name(job.task_id),
            rules=replace(self._rules.staging, slurm=self._rules.options_of(state.user)),
            check=self._do.checker(job),
        )
        runs.hand_over(state.token, self._do.checker(job))
        write_durably(job.record.path / inputs.TASK_FILE, json.dumps(task.as_json()), sync=False)
        job.record.append("staged", cluster=DIRECT if self._is_waited_for(job, task) else "")

    def render(self, job: LiveJob) -> None:
        """Finds the image's SIF and writes script, argument file and environment file."""
        state = job.state
        task = inputs.StagedTask.of_record(job.record.path)
        if task is None:
            # A power cut took what was not synced: its inputs are brought again.
            job.record.append(
                "attempt",
                number=state.attempt,
                token=state.token,
                nonce=state.nonce,
                unix_user=state.unix_user,
                log_path=state.log_path,
            )
            return
        sif = job.sif or self._sif_at_hand(task)
        if sif is None or not take(sif.path, self._do.clock):
            job.sif = None
            raise Parked(task.image, task.pull_policy)
        runs = self._do.runs_of(state)
        run = runs.path(state.token)
        asked = job_request(
            replace(self._rules.options_of(state.user), girder=self._girder_settings(state)),
            image=task.image,
            cli=task.arguments[0] if task.arguments else "",
            labels=sif.config.labels,
            parameters=task.slurm_parameters,
            arguments=task.slurm_arguments,
        )
        plan = container_plan(
            self._with_gpus(task, sif, asked.gpus),
            sif=str(sif.path),
            image=sif.config,
            rules=self._rules.containers,
            paths=RunPaths(*(str(run / name) for name in ("environment", "scratch", "scratch/overlay.img"))),
            uid=runs.uid,
            owner=NOBODY if state.user is None else JobOwner(state.user.login, state.user.groups),
            overlay_mib=asked.overlay_mib,
        )
        spec = plan.spec
        runs.write(state.token, "environment", environment_file_text(container_environment(spec)).encode())
        try:
            data = argument_file(task.arguments or default_arguments(spec))
        except ValueError as error:
            raise NotSupported(str(error)) from error
        runs.write(state.token, "arguments", data)
        head, container = self._container(runs, state.token, spec)
        chosen = asked.chosen(
            plan.wishes,
            head=head,
            gpu_options=self._rules.containers.gpu_options,
            partitions=self._do.partitions,
        )
        options = tuple((option.name, option.value) for option in chosen.options)
        hooks = self._rules.hooks.with_lines(asked.hooks)
        script = JobScript(
            token=state.token,
            run=str(run),
            spool=str(runs.spool),
            log=state.log_path,
            scratch=str(run / "scratch"),
            container=container,
            sbatch_head=head,
            thread_variables=plan.thread_variables,
            gpu_variables=plan.gpu_variables,
            job_variables=plan.job_variables,
            site_paths=plan.site_paths,
            overlay=spec.overlay or "",
            make_overlay=self._make_overlay(plan),
            options=options,
            prerun=prerun_lines(hooks),
            postrun=hooks.postrun,
            launcher=() if state.cluster == DIRECT else launcher_lines(hooks.srun),
        )
        runs.write(state.token, "job.slurm", self._rendered(script), mode=0o700)
        self._say_what_is_not_met(job, plan.ignored, chosen)
        self._say_if_it_outlives_its_tokens(job, {**head_options(head), **dict(options)})
        write_durably(job.record.path / OPTIONS_FILE, json.dumps(origins_as_json(chosen.options)), sync=False)
        # Those of the site as well: its configuration may change before the job is submitted.
        job.record.append("rendered", sif=str(sif.path), options=options)
        # Not before: a step that is tried again must not ask the registry each time.
        job.sif = None

    def _girder_settings(self, state: JobState) -> Mapping[str, object]:
        """What an administrator of Girder wants of Slurm; nothing for what does not go there."""
        if state.girder is None or state.cluster == DIRECT:
            return {}
        return self._do.girder_settings(state.girder)

    def _reach(self, unix_user: str) -> None:
        """Has the run root of another Unix user made; raises UserRefused if nothing but a person can help."""
        if unix_user:
            try:
                self._do.runs_for(unix_user).prepare()
            except UserUnreachable as error:
                if error.is_refused:
                    msg = f"This job is to run as the Unix user {unix_user}, and cannot: {error}"
                    raise UserRefused(msg) from error
                raise

    def _ask_for_user_again(self, job: LiveJob, decoded: DecodedTask) -> None:
        """Asks whose job it is if a worker of other settings has asked for less than the mapping needs by now."""
        state = job.state
        if job.user_is_asked or state.girder is None or self._rules.users.knows_enough_of(state.user):
            return
        tokens = inputs.tokens_of((decoded.args, decoded.kwargs, decoded.hooks))
        user = self._do.users.user_of(state.girder, job.record.message(), tokens)
        job.user_is_asked = True
        if user is not None and user != state.user:
            job.record.append("user", user=user.as_entry())

    def _log_path(self, job: LiveJob, unix_user: str, token: str, attempt: int) -> Path:
        """A file of this attempt's own: the one before may still be writing to its."""
        if self._rules.logs_dir is None or unix_user:  # who cannot write to the worker's directory
            return self._do.runs_for(unix_user).path(token) / "output.log"
        again = f".{attempt}" if attempt > 1 else ""
        return self._rules.logs_dir / f"{directory_name(job.task_id)}{again}.log"

    def _rendered(self, script: JobScript) -> bytes:
        template = self._rules.script_template
        try:
            text = b"" if template is None else site_file(template, "template of the job script")
            rendered = render_script(script, site_template=text.decode().replace("\r\n", "\n"))
        except ValueError as error:
            raise NotSupported(str(error)) from error
        if template is not None and (forbidden := forbidden_head_option(sbatch_head(rendered))) is not None:
            msg = f"The site's template of the job script {template} sets `{forbidden}` in its #SBATCH head, which only the worker may."
            raise NotSupported(msg)
        return rendered.encode()

    def _with_gpus(self, task: inputs.StagedTask, sif: Sif, requested: int) -> inputs.StagedTask:
        """The task, which wants GPUs if its argument `--gpu` says so, or its options for Slurm do."""
        gpus = max(task.wishes.gpus, requested)
        if task.arguments:
            cli, *rest = task.arguments
            description = read_descriptions(self._rules.jobs_root, sif.path.name).get(cli, "")
            gpus = max(gpus, gpus_asked_for(rest, description))
        return replace(task, wishes=replace(task.wishes, gpus=gpus))

    def _make_overlay(self, plan: ContainerPlan) -> tuple[str, ...]:
        spec = plan.spec
        if spec.overlay is None:
            return ()
        return overlay_argv(
            spec.overlay, plan.overlay_mib, fakeroot=spec.fakeroot, apptainer=self._rules.apptainer
        )

    def _say_what_is_not_met(self, job: LiveJob, ignored: tuple[str, ...], chosen: Chosen) -> None:
        if ignored:
            self._girder.feed(job).note(
                f"These Docker options have no counterpart on a cluster: {', '.join(ignored)}."
            )
        if chosen.unmet:
            decided = ", ".join(chosen.unmet)
            self._girder.feed(job).note(f"The site's own sbatch options decide about {decided}.")
        for sentence in chosen.passed_over:
            self._girder.feed(job).note(sentence)
        if chosen.uncounted:
            left_out = ", ".join(chosen.uncounted)
            self._girder.feed(job).note(f"Slurm counts no memory on this cluster: {left_out} is left out.")

    def _say_if_it_outlives_its_tokens(self, job: LiveJob, options: Mapping[str, str]) -> None:
        """Warns, before the first attempt, of an end that Girder would not take any more."""
        state = job.state
        limit = minutes(options["time"]) if "time" in options else None
        now = self._do.clock.now()
        if state.girder is None or state.earlier or not outlives_tokens(state.tokens_end_at, now, limit):
            return
        # So far this was Girder's custom; what counts is what it says of this very token.
        ends_at = self._do.users.token_ends_at(state.girder)
        if outlives_tokens(ends_at, now, limit):
            self._girder.feed(job).note(warning(ends_at, now, state.girder.job_id))

    def _sif_at_hand(self, task: inputs.StagedTask) -> Sif | None:
        return self._do.images.find_for(task.image, task.pull_policy)

    def _container(
        self, runs: RunFiles, token: str, spec: ContainerSpec
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is started on the node: Apptainer itself, or the site's script with Apptainer's arguments."""
        site = self._rules.submit_script
        if site is None:
            return (), container_argv(spec, apptainer=self._rules.apptainer)
        text = site_file(site, "submit script")
        copy = runs.write(token, "site.slurm", text, mode=0o700)
        start = (str(copy),) if text.startswith(b"#!") else ("/bin/bash", str(copy))
        head = sbatch_head(text.decode("utf-8", errors="replace"))
        if (forbidden := forbidden_head_option(head)) is not None:
            msg = f"The site's submit script {site} sets `{forbidden}` in its #SBATCH head, which only the worker may."
            raise NotSupported(msg)
        return head, (*start, *container_arguments(spec))

    def _is_waited_for(self, job: LiveJob, task: inputs.StagedTask) -> bool:
        """Whether Girder keeps a form waiting for this run: it must not wait in the queue."""
        if self._do.decoded(job).hooks or not task.arguments or job.state.unix_user:
            return False  # what runs on the worker's machine runs as the worker
        try:
            sif = self._do.images.find(task.image)
        except SifDamaged:
            return False
        if sif is None:
            return False
        description = read_descriptions(self._rules.jobs_root, sif.path.name).get(task.arguments[0], "")
        return is_datalist_request(task.arguments[1:], description)
