"""The probe job: submits `probe.slurm` the way jobs are submitted, watches its files, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import CommandError
from girder_worker_singularity.run.image_rules import parse_image_rule
from girder_worker_slurm.cluster.interface import Submission
from girder_worker_slurm.cluster.run_directory import ask_anew
from girder_worker_slurm.cluster.slurm_commands import FINAL_STATES
from girder_worker_slurm.doctor import apptainer
from girder_worker_slurm.doctor.finding import fail, warn
from girder_worker_slurm.doctor.probe_verdict import (
    CHECK,
    ProbeFacts,
    Sighting,
    delay_seconds,
    judge_probe,
    parse_report,
)
from girder_worker_slurm.errors import (
    ClusterUnreachable,
    SubmitDeferred,
    SubmitRejected,
    SubmitUnsure,
    Unreachable,
)
from girder_worker_slurm.job.job_events import ANEW_SECONDS
from girder_worker_slurm.options.layers import ChosenOption
from girder_worker_slurm.options.partitions import used_partitions, without_memory
from girder_worker_slurm.records.event_delay import note_delay
from girder_worker_slurm.script.render import sbatch_head, script_template
from girder_worker_slurm.script.resources import head_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_slurm.cluster.interface import Cluster
    from girder_worker_slurm.doctor.finding import Finding
    from girder_worker_slurm.options.partitions import Partition
    from girder_worker_slurm.settings import Settings

_LOOK_SECONDS = 0.1
_ASK_SLURM_SECONDS = 2.0
#: How long the report is waited for after Slurm said that the job ended: longer than NFS keeps a directory.
_AFTER_END_SECONDS = 75.0


@dataclass(frozen=True)
class ProbeRules:
    """How the probe job is submitted and how long it is waited for."""

    slurm_options: tuple[tuple[str, str], ...]
    timeout_seconds: float = 120.0
    partitions: Callable[[], Mapping[str, Partition]] = dict

    def options(self, head: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """The options of the probe: those of a job that asks for nothing; raises ClusterUnreachable.

        `head` are the `#SBATCH` lines of its script.
        """
        chosen = [ChosenOption(name, value, "") for name, value in self.slurm_options]
        said = {**head_options(head), **dict(self.slurm_options)}
        kept, _ = without_memory(chosen, used_partitions(said, self.partitions()))
        return tuple((option.name, option.value) for option in kept)


class Probe:
    """One probe job."""

    def __init__(
        self, settings: Settings, cluster: Cluster, runner: CommandRunner, clock: Clock, rules: ProbeRules
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._runner = runner
        self._clock = clock
        self._rules = rules
        self._name = f"doctor-{secrets.token_hex(8)}"
        self._made: list[Path] = []
        self._is_over = True
        self._facts = ProbeFacts()

    @property
    def token(self) -> str:
        """The name of the Slurm job; no worker takes it for one of its own."""
        return f"gw-{self._name}"

    def run(self) -> Iterator[Finding]:
        """Submits, watches, judges. Files and job are gone afterwards, also after an error or Ctrl-C."""
        try:
            findings = list(self._run())
        finally:
            self._clean()
        yield from findings

    def _run(self) -> Iterator[Finding]:
        try:
            directory = self._prepare()
        except (OSError, ValueError) as error:
            yield fail(CHECK, f"Its files cannot be written: {error}.", "Mend the directories above first.")
            return
        self._facts.submitted_at = self._clock.now()
        self._is_over = False
        try:
            options = self._rules.options(self._site_head())
            submission = Submission(self.token, directory / "probe.slurm", Path("/dev/null"), options)
            self._facts.slurm_job_id = self._cluster.submit(submission)
        except SubmitRejected as error:
            self._is_over = True
            yield fail(
                CHECK, f"{error}", "Correct `partition` in [slurm] and the options in [slurm.options]."
            )
            return
        except SubmitDeferred as error:
            self._is_over = True
            yield warn(CHECK, f"{error}", "Try again when some of this user's jobs have ended.")
            return
        except (SubmitUnsure, ClusterUnreachable) as error:
            yield fail(CHECK, f"{error}", "Look whether the Slurm controller answers: scontrol ping")
            return
        self._watch(directory)
        self._tell_worker()
        yield from judge_probe(
            self._facts,
            jobs_root=self._settings.jobs_root,
            sif=self._settings.sif_image_path,
            uid=os.geteuid(),
            grace_seconds=self._settings.slurm.event_grace_seconds,
            waited_seconds=self._rules.timeout_seconds,
        )

    # -- files

    def _prepare(self) -> Path:
        """Writes what the job reads; returns the probe's directory below the jobs root."""
        settings = self._settings
        directory = self._make(settings.jobs_root / "tmp" / self._name)
        self._make(directory / "spool")
        nonce = secrets.token_hex(16)
        (directory / "nonce").write_text(nonce, encoding="utf-8")
        sif_note = self._make(settings.sif_image_path / f".{self._name}") / "note"
        sif_note.write_text(nonce, encoding="utf-8")
        logs = self._make(settings.jobs.logs_dir / f".{self._name}") if settings.jobs.logs_dir else None
        tiny_sif = ""
        with contextlib.suppress(apptainer.TinySifNotMade, CommandError):
            tiny_sif = str(apptainer.make_tiny_sif(settings.singularity.apptainer, self._runner, directory))
        script = render_probe(
            directory=str(directory),
            nonce=nonce,
            sif_note=str(sif_note),
            logs_directory=str(logs or ""),
            apptainer=settings.singularity.apptainer,
            tiny_sif=tiny_sif,
            direct_paths=tuple(settings.slurm.direct_paths),
            binds=tuple(settings.slurm.binds),
            with_overlay=any(
                parse_image_rule(words).writable == "overlay"
                for words in settings.singularity.images.values()
            ),
            sbatch_head=self._site_head(),
        )
        path = directory / "probe.slurm"
        path.write_text(script, encoding="utf-8")
        path.chmod(0o700)
        return directory

    def _make(self, path: Path) -> Path:
        """Makes a directory of the probe's own and remembers it together with those above that were missing."""
        missing = [path]
        missing += [parent for parent in path.parents if not parent.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=0o700)
            self._made.append(directory)
        return path

    def _site_head(self) -> tuple[str, ...]:
        script = self._settings.slurm.submit_script
        if script is None:
            return ()
        return sbatch_head(script.read_text(encoding="utf-8", errors="replace"))

    def _clean(self) -> None:
        """Cancels the job unless it is over, and removes what was made, the newest first."""
        if not self._is_over:
            with contextlib.suppress(Unreachable):
                # By name: also a job whose id never came back.
                self._cluster.cancel([self.token])
        for path in reversed(self._made):
            if self._name in str(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                # A directory above ours, which the worker may have begun to use meanwhile.
                with contextlib.suppress(OSError):
                    path.rmdir()
        self._made.clear()

    def _tell_worker(self) -> None:
        """Keeps how late files are seen where that is more than the worker expects."""
        if self._facts.report is None:
            return
        grace, delay = self._settings.slurm.event_grace_seconds, delay_seconds(self._facts)
        try:
            note_delay(self._settings.jobs_root, grace, delay, at=self._clock.now())
        except OSError as error:
            self._facts.not_kept = str(error)

    # -- watching

    def _watch(self, directory: Path) -> None:
        """Looks at the job's files as the worker looks at its spool, and asks Slurm now and then."""
        give_up_at = self._clock.monotonic() + self._rules.timeout_seconds
        ask_at = self._clock.monotonic() + _ASK_SLURM_SECONDS
        anew_at = 0.0
        ended_at: float | None = None
        reported_at: float | None = None
        seen: set[str] = set()
        while True:
            now = self._clock.monotonic()
            if now >= anew_at:
                anew_at = now + ANEW_SECONDS
                for each in (directory, directory / "spool"):
                    ask_anew(each)
            self._look_at_beats(directory / "spool", seen)
            if reported_at is None and self._take_report(directory):
                reported_at = now
                self._is_over = True
                if ended_at is not None:
                    self._facts.report_after_end = now - ended_at
            if reported_at is not None:
                # A mount may show the report at once, which it was never asked for before, and others late.
                if self._has_seen_all(seen):
                    return
                if now >= reported_at + _AFTER_END_SECONDS:
                    self._facts.unseen_seconds = now - reported_at
                    return
                self._clock.sleep(_LOOK_SECONDS)
                continue
            if ended_at is not None and (self._facts.exit_code_tells or now >= ended_at + _AFTER_END_SECONDS):
                self._is_over = True
                return
            if ended_at is None and now >= give_up_at:
                return
            if ended_at is None and now >= ask_at:
                ask_at = now + _ASK_SLURM_SECONDS
                if self._ask_slurm():
                    ended_at = self._clock.monotonic()
            self._clock.sleep(_LOOK_SECONDS)

    def _look_at_beats(self, spool: Path, seen: set[str]) -> None:
        with os.scandir(spool) as entries:
            names = [entry.name for entry in entries if entry.name not in seen and entry.name[0] != "."]
        now = self._clock.now()
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                written = float((spool / name).read_text(encoding="ascii"))
                self._facts.sightings.append(Sighting(written, now))
                seen.add(name)

    def _has_seen_all(self, seen: set[str]) -> bool:
        beats = (self._facts.report or {}).get("beats", "")
        return not beats.isdigit() or len(seen) >= int(beats)

    def _take_report(self, directory: Path) -> bool:
        try:
            text = (directory / "report").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        report, hidden, missing = parse_report(text)
        if "done" not in report:
            return False
        self._facts.report, self._facts.hidden_paths, self._facts.missing_paths = report, hidden, missing
        return True

    def _ask_slurm(self) -> bool:
        """Takes note of what Slurm says about the job; True once it has ended."""
        try:
            rows = self._cluster.find(self.token)
            if rows:
                self._facts.state, self._facts.reason = rows[0].state, rows[0].reason
            if not rows or rows[0].state not in FINAL_STATES:
                return False
            self._facts.detail = self._cluster.describe(rows[0].slurm_job_id)
        except Unreachable:
            return False
        return True


def render_probe(
    *,
    directory: str,
    nonce: str,
    sif_note: str,
    logs_directory: str,
    apptainer: str,
    tiny_sif: str,
    direct_paths: tuple[str, ...],
    binds: tuple[str, ...] = (),
    with_overlay: bool = False,
    sbatch_head: tuple[str, ...] = (),
) -> str:
    """The text of the probe script; raises ValueError for a value that cannot stand in it."""
    from girder_worker_slurm.doctor.apptainer import EXEC_OPTIONS, HOST_DIRECTORIES  # noqa: PLC0415

    values = (directory, sif_note, logs_directory, apptainer, tiny_sif, *direct_paths, *binds)
    template = script_template(__package__, "probe.slurm", values)
    return template.render(
        directory=directory,
        nonce=nonce,
        sif_note=sif_note,
        logs_directory=logs_directory,
        apptainer=apptainer,
        tiny_sif=tiny_sif,
        direct_paths=direct_paths,
        binds=binds,
        with_overlay=with_overlay,
        sbatch_head=sbatch_head,
        exec_options=EXEC_OPTIONS,
        host_directories=HOST_DIRECTORIES,
    )
