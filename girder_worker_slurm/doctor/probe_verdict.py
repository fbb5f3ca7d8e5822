"""What the probe job's report and the times of its files mean. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from girder_worker_slurm.doctor.apptainer import judge_container, judge_version
from girder_worker_slurm.doctor.finding import fail, ok, warn
from girder_worker_slurm.records.event_delay import grace_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from girder_worker_slurm.cluster.interface import JobDetail
    from girder_worker_slurm.doctor.finding import Finding

CHECK = "probe job"

#: Exit codes of probe.slurm.
NOT_VISIBLE = 66
NOT_WRITABLE = 73
_CLOCK_TOLERANCE_SECONDS = 2.0


@dataclass
class Sighting:
    """One file of the probe job: when the node's clock said it was written, and when it was seen here."""

    written: float
    seen: float


@dataclass
class ProbeFacts:
    """All that was seen of one probe job."""

    slurm_job_id: str = ""
    submitted_at: float = 0.0
    sightings: list[Sighting] = field(default_factory=list)
    #: Seconds from Slurm's word that it ended until its report was seen; None if the report came first.
    report_after_end: float | None = None
    #: Seconds from the report until files that were written before it were given up; 0 if all were seen.
    unseen_seconds: float = 0.0
    #: Why the worker will not learn how late files are seen; empty if it will, or has no need to.
    not_kept: str = ""
    #: What probe.slurm says, without the repeated ones; None until its report is here.
    report: Mapping[str, str] | None = None
    hidden_paths: Sequence[str] = ()
    missing_paths: Sequence[str] = ()
    #: Slurm's last word, when the report never came.
    state: str = ""
    reason: str = ""
    detail: JobDetail | None = None

    @property
    def exit_code_tells(self) -> bool:
        """Whether the job's exit code says all, so that no report needs to be waited for."""
        return self.detail is not None and self.detail.exit_code in (NOT_VISIBLE, NOT_WRITABLE)


def parse_report(text: str) -> tuple[dict[str, str], list[str], list[str]]:
    """The report's lines `name=value`; the direct paths that the node does not see; the site's paths that are missing."""
    values: dict[str, str] = {}
    hidden: list[str] = []
    missing: list[str] = []
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "hidden":
            hidden.append(value)
        elif name == "missing":
            missing.append(value)
        else:
            values[name] = value
    return values, hidden, missing


def judge_probe(
    facts: ProbeFacts, *, jobs_root: Path, sif: Path, uid: int, grace_seconds: float, waited_seconds: float
) -> Iterator[Finding]:
    """All findings of one probe job."""
    if facts.report is None:
        yield from _judge_silence(facts, jobs_root, waited_seconds)
        return
    report = facts.report
    node = report.get("node", "the node")
    yield ok(CHECK, f"Slurm job {facts.slurm_job_id} ran on {node}.")
    yield from _judge_files(report, node, jobs_root=jobs_root, sif=sif, uid=uid)
    for path in facts.hidden_paths:
        yield warn(
            "direct paths on the node",
            f"{path} cannot be read on {node}.",
            "Mount it there, or remove it from `direct_paths` in [slurm].",
        )
    for path in facts.missing_paths:
        yield warn(
            "site data on the node",
            f"{path} is not on {node}; jobs that get it fail there (`site_data_missing`).",
            "Mount it there, or remove it from [slurm.binds].",
        )
    yield from _judge_delay(facts, node, grace_seconds)
    yield from _judge_clock(facts, node)
    yield from _judge_apptainer(report, node)
    yield from _judge_overlay(report, node)
    yield from _judge_scratch(report, node)


def _judge_silence(facts: ProbeFacts, jobs_root: Path, waited_seconds: float) -> Iterator[Finding]:
    job = f"Slurm job {facts.slurm_job_id}"
    detail = facts.detail
    if detail is not None and detail.exit_code == NOT_VISIBLE:
        yield fail(
            CHECK,
            f"{job} does not see {jobs_root} on {detail.nodes}, or sees another directory of that name.",
            "Set `root` in [jobs] to a directory on a file system that this machine and the compute nodes share.",
        )
    elif detail is not None and detail.exit_code == NOT_WRITABLE:
        yield fail(
            CHECK,
            f"{job} cannot write to {jobs_root} on {detail.nodes}.",
            "Mount it writable on the nodes, for this user, or set another `root` in [jobs].",
        )
    elif facts.sightings and facts.state in ("", "RUNNING", "COMPLETING"):
        yield warn(
            CHECK,
            f"{job} started, and its report was not here after {waited_seconds:.0f} s.",
            "Try again with a longer --timeout; if that does not help, look what hangs on the node.",
        )
    elif facts.state in ("PENDING", "CONFIGURING", ""):
        reason = f" ({facts.reason})" if facts.reason and facts.reason != "None" else ""
        yield warn(
            CHECK,
            f"{job} was still {facts.state or 'unknown to Slurm'}{reason} after {waited_seconds:.0f} s and was cancelled.",
            "Try again with a longer --timeout when the cluster is less busy; if the reason names a limit or a missing"
            " resource, correct the options in [slurm].",
        )
    else:
        how = f", exit code {detail.exit_code}, reason {detail.reason}" if detail is not None else ""
        yield fail(
            CHECK,
            f"{job} ended ({facts.state}{how}), and nothing of it can be seen here.",
            f"Look whether the nodes write to the same {jobs_root} as this machine, and into slurmd's log.",
        )


def _judge_files(
    report: Mapping[str, str], node: str, *, jobs_root: Path, sif: Path, uid: int
) -> Iterator[Finding]:
    check = "jobs root on the node"
    if report.get("uid") != str(uid):
        yield fail(
            check,
            f"The job ran as user number {report.get('uid')} on {node}, and this user is {uid} here.",
            "Give the worker's user the same number on all machines of the cluster.",
        )
    if report.get("link") == "yes":
        yield ok(check, f"{jobs_root} is the same on {node}: written, renamed and linked there, seen here.")
    else:
        yield fail(
            check,
            f"No hard link can be made in {jobs_root} on {node}; jobs need one to start only once.",
            "Set `root` in [jobs] to a file system with hard links.",
        )
    if report.get("sif") == "no":
        yield fail(
            "SIF directory on the node",
            f"{sif} cannot be read on {node}, or is another directory there.",
            "Set `sif_image_path` in [singularity] to a directory that this machine and the compute nodes share.",
        )
    elif report.get("sif") == "yes":
        yield ok("SIF directory on the node", f"{sif} can be read on {node}.")
    if report.get("logs") == "no":
        yield fail(
            "logs directory on the node",
            f"The logs directory cannot be written on {node}.",
            "Set `logs_dir` in [jobs] to a directory that the compute nodes can write, or leave it empty.",
        )
    elif report.get("logs") == "yes":
        yield ok("logs directory on the node", f"It can be written on {node}.")


def delay_seconds(facts: ProbeFacts) -> float:
    """How late files of a node are seen here, at least; no two clocks are compared for it.

    A cache that is refreshed now and then shows one file at once and the next one late: the spread is the delay.
    """
    ages = [sighting.seen - sighting.written for sighting in facts.sightings]
    spread = max(ages) - min(ages) if ages else 0.0
    return max(spread, facts.report_after_end or 0.0, facts.unseen_seconds)


def _judge_delay(facts: ProbeFacts, node: str, grace_seconds: float) -> Iterator[Finding]:
    delay = delay_seconds(facts)
    wanted = grace_for(delay)
    most = "at least" if facts.unseen_seconds else "at most"
    found = f"A file of {node} is seen here after {delay:.1f} s {most} ({len(facts.sightings)} tried)"
    if grace_seconds < wanted and facts.not_kept:
        yield warn(
            "events of the node",
            f"{found}, and event_grace_seconds is {grace_seconds:g}. The worker cannot be told: {facts.not_kept}.",
            f"Set `event_grace_seconds` in [slurm] to {wanted}, or what Slurm says may count before a job's own word.",
        )
    elif grace_seconds < wanted:
        yield ok(
            "events of the node",
            f"{found}: from its next start on the worker waits {wanted} s for a job's own word, longer than"
            f" event_grace_seconds = {grace_seconds:g}.",
        )
    else:
        yield ok("events of the node", f"{found}; event_grace_seconds = {grace_seconds:g} is enough.")


def _judge_clock(facts: ProbeFacts, node: str) -> Iterator[Finding]:
    """A file is written after the submission and before it is seen: whatever is outside of that is the clock."""
    early = max((facts.submitted_at - sighting.written for sighting in facts.sightings), default=0.0)
    late = max((sighting.written - sighting.seen for sighting in facts.sightings), default=0.0)
    off = max(early, late)
    if off > _CLOCK_TOLERANCE_SECONDS:
        way = "behind" if early >= late else "ahead"
        yield warn(
            "clock of the node",
            f"The clock of {node} is at least {off:.0f} s {way} of this machine's; times in records will be wrong.",
            "Keep the clocks of all machines together (chrony, ntpd); munge needs that as well.",
        )


def _judge_apptainer(report: Mapping[str, str], node: str) -> Iterator[Finding]:
    check = "Apptainer on the node"
    if "apptainer" not in report:
        yield fail(
            check,
            f"It cannot be started on {node}: {report.get('apptainer_missing', '').strip() or 'no answer'}.",
            "Install it on the nodes, or set `apptainer` in [singularity] to an absolute path that exists there too.",
        )
        return
    yield from judge_version(check, report["apptainer"], where=f" on {node}")
    code = report.get("container_code", "")
    if code.isdigit():
        yield from judge_container(
            "container on the node", int(code), report.get("container_words", ""), where=f"on {node}"
        )


def _judge_overlay(report: Mapping[str, str], node: str) -> Iterator[Finding]:
    check, code = "overlay on the node", report.get("overlay_code", "")
    if code == "0":
        yield ok(check, f"Images with `writable=overlay` can run on {node}.")
    elif code:
        said = report.get("overlay_words", "").strip()[-400:].rstrip(".") or f"exit code {code}"
        yield fail(
            check,
            f"An image with `writable=overlay` cannot run on {node}: {said}.",
            "Install mkfs.ext3 (e2fsprogs) and fuse2fs there, or Apptainer's setuid part; or choose `writable=tmpfs`"
            " in [singularity.images].",
        )


def _judge_scratch(report: Mapping[str, str], node: str) -> Iterator[Finding]:
    check = "TMPDIR on the node"
    place = report.get("tmpdir", "")
    free = report.get("tmpdir_free_kb", "")
    if report.get("tmpdir_writable") == "yes":
        room = f", {int(free) / 1e6:.1f} GB free" if free.isdigit() else ""
        yield ok(check, f"{place} on {node} can be written{room}.")
    else:
        yield warn(
            check,
            f"{place} cannot be written on {node}.",
            "Ask the administrators; containers have their /tmp in the run directory and do not need it.",
        )
