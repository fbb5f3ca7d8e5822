"""A record in the words of the people who ask about it. Reads, and never shows a token or a nonce."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from girder_worker_slurm.cluster.slurm_accounting import AccountedUsage
from girder_worker_slurm.errors import RecordDamaged
from girder_worker_slurm.job.state import Outcome, Phase
from girder_worker_slurm.job.usage import ACCOUNTED_FILE, accounted_sentence, sentence_so_far, usage_of
from girder_worker_slurm.job.verdict import final_outcome, owed_to_girder
from girder_worker_slurm.records.cancel_request import cancel_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_slurm.cluster.slurm_accounting import UsageSoFar
    from girder_worker_slurm.job.state import EarlierAttempt, JobState
    from girder_worker_slurm.records.record import Record

#: Every state word, in the order of a job's life, and what it means.
STATE_WORDS = {
    "accepted": "Taken from the queue; Girder has not been asked about it yet.",
    "ingesting": "The CLIs of its images are being registered in Girder.",
    "staging": "Its inputs are being fetched.",
    "preparing": "Its image is being made ready, then its script is written.",
    "waiting": "Ready, and waiting for a free place among the jobs that this worker may have in Slurm.",
    "submitting": "Being handed to Slurm.",
    "pending": "In Slurm, not started.",
    "running": "Running in Slurm.",
    "ending": "Has ended on the node; how is being found out.",
    "cancelling": "Being cancelled.",
    "uploading": "Its outputs are being brought to Girder.",
    "reporting": "Girder is being told how it ended.",
    "cleaning": "Its inputs and outputs are being removed from the cluster.",
    "succeeded": "Ended well.",
    "failed": "Ended with an error.",
    "canceled": "Was cancelled.",
    "abandoned": "Its Girder job was deleted.",
}

_ENDINGS = {
    Outcome.SUCCESS: "succeeded",
    Outcome.ERROR: "failed",
    Outcome.CANCELED: "canceled",
    Outcome.ABANDONED: "abandoned",
}
#: Of what a job's events say, that which is for people.
_EVENT_FIELDS = (
    "node",
    "at",
    "restart",
    "exit_code",
    "signal",
    "cause",
    "seconds",
    "memory_peak_bytes",
    "oom_kills",
    "log_bytes",
    "cpus",
    "memory_mib",
    "times",
)
_TAIL_BYTES = 64 * 1024


def state_word(state: JobState) -> str:
    """One of STATE_WORDS."""
    phase = state.phase
    if phase is Phase.CLOSED:
        return _ENDINGS[final_outcome(state).outcome] if state.verdict or state.cancel else "abandoned"
    if phase >= Phase.DECIDED:
        return {
            Phase.DECIDED: "uploading"
            if state.verdict and state.verdict.outcome is Outcome.SUCCESS
            else "reporting",
            Phase.DELIVERED: "reporting",
        }.get(phase, "cleaning")
    if state.cancel:
        return "cancelling"
    if phase is Phase.SUBMITTED:
        if state.ended is not None:
            return "ending"
        return "pending" if state.started is None else "running"
    if phase is Phase.ADMITTED and state.kind == "ingest":
        return "ingesting"
    return {
        Phase.ACCEPTED: "accepted",
        Phase.ADMITTED: "staging",
        Phase.STAGED: "preparing",
        Phase.RENDERED: "waiting",
    }.get(phase, "submitting")


@dataclass(frozen=True)
class JobView:
    """One line of `girder-slurm jobs`."""

    girder_job_id: str
    title: str
    state: str
    slurm_job_id: str
    image: str
    #: When the record was last written, which is when this state began or nearly so; ISO 8601.
    since: str
    accepted_at: str
    task_id: str
    worker: str
    cancel_requested: bool

    def as_json(self) -> dict[str, Any]:
        """The line for machines."""
        return asdict(self)


def view(record: Record) -> JobView:
    """The line of one record."""
    state = record.state
    return JobView(
        girder_job_id=state.girder.job_id if state.girder else "",
        title=state.girder.title if state.girder else "",
        state=state_word(state),
        slurm_job_id=state.slurm_job_id,
        image=state.image,
        since=iso(_changed_at(record)),
        accepted_at=iso(state.accepted_at),
        task_id=record.task_id,
        worker=record.owner(),
        cancel_requested=bool(cancel_request(record.path))
        and state.phase < Phase.DECIDED
        and not state.cancel,
    )


def details(
    record: Record, jobs_root: Path, *, log_lines: int, so_far: UsageSoFar | None = None
) -> dict[str, Any]:
    """Everything about a job that a person may see, ready for JSON."""
    state = record.state
    has_end = state.phase >= Phase.DECIDED and (state.verdict is not None or bool(state.cancel))
    verdict = final_outcome(state) if has_end else None
    log = log_file(record)
    usage = usage_of(state)
    return {
        **view(record).as_json(),
        "meaning": STATE_WORDS[state_word(state)],
        "task": _task(record),
        "kind": state.kind,
        "user": state.user.as_entry() if state.user else None,
        "unix_user": state.unix_user,
        "girder_url": _plain_url(state.girder.url) if state.girder else "",
        "slurm_job_name": state.token,
        "attempt": state.attempt,
        "earlier_attempts": [
            {"slurm_job_id": earlier.slurm_job_id, "slurm_job_name": earlier.token, "code": earlier.code}
            | {"nodes": earlier.nodes, "run_directory": run_directory(earlier, jobs_root)}
            for earlier in state.earlier
        ],
        "submitted_at": iso(state.submitted_at),
        "started": _event(state.started),
        "ended": _event(state.ended),
        "usage_so_far": None if so_far is None else {**asdict(so_far), "sentence": sentence_so_far(so_far)},
        "usage": None if usage is None else {**asdict(usage), "sentence": usage.sentence()},
        "accounted": _accounted(record.path),
        "cancel": state.cancel or cancel_request(record.path),
        "verdict": verdict.as_entry() if verdict else None,
        "owed": _owed(record, jobs_root),
        "record": str(record.path),
        "run_directory": run_directory(state, jobs_root),
        "log": str(log) if log else "",
        "log_tail": [without_secrets(line, state) for line in last_lines(log, log_lines)] if log else [],
    }


def _owed(record: Record, jobs_root: Path) -> str:
    """What Girder did not take of an ended job, where it is, and what to do."""
    owed = owed_to_girder(record.state) if record.state.phase is Phase.CLOSED else ""
    if not owed:
        return ""
    where = f" (in {jobs_root / 'run' / record.state.token / 'volume'})" if record.state.owes_outputs else ""
    return f"{owed}{where}: girder-slurm retry-upload {record.task_id}"


def _accounted(directory: Path) -> dict[str, Any] | None:
    """What Slurm's accounting said about the job, if it was asked."""
    try:
        found = json.loads((directory / ACCOUNTED_FILE).read_text(encoding="utf-8"))
        return {**found, "sentence": accounted_sentence(AccountedUsage(**found))}
    except (OSError, ValueError, TypeError):
        return None


def user_words(user: Mapping[str, Any] | None) -> str:
    """A Girder user as people read it; empty for none."""
    return "" if user is None else f"{user['login'] or '(login not told)'} ({user['id']})"


def log_file(record: Record) -> Path | None:
    """The job's full log; if that is gone or not there yet, the text that Girder has; None if there is neither."""
    state = record.state
    # The log of a job of another Unix user is theirs.
    own = Path(state.log_path) if state.log_path and not state.unix_user else None
    for path in (own, record.path / "girder.log"):
        if path is not None and path.is_file():
            return path
    return None


def run_directory(attempt: JobState | EarlierAttempt, jobs_root: Path) -> str:
    """Where the files of an attempt are; empty before there are any."""
    if not attempt.token:
        return ""
    # With the files of other Unix users is their log, always.
    return str(Path(attempt.log_path).parent if attempt.unix_user else jobs_root / "run" / attempt.token)


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file of any length."""
    if count <= 0:
        return []
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - _TAIL_BYTES))
        data = handle.read()
    lines = data.decode("utf-8", errors="replace").splitlines()
    return lines[-count:]


def without_secrets(text: str, state: JobState) -> str:
    """The text without the job's Girder token and nonce."""
    for secret in (state.girder.token if state.girder else "", state.nonce):
        if secret:
            text = text.replace(secret, "***")
    return text


def iso(seconds: float) -> str:
    """A moment in local time; empty for none."""
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).astimezone().isoformat(timespec="seconds")


def ago(moment: str, now: float) -> str:
    """How long ago an ISO moment is, short: `12 s`, `5 min`, `3 h`, `2 d`."""
    if not moment:
        return ""
    seconds = max(0.0, now - datetime.fromisoformat(moment).timestamp())
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // 86400)} d"


def _changed_at(record: Record) -> float:
    try:
        return (record.path / "state.jsonl").stat().st_mtime
    except OSError:
        return record.state.accepted_at


def _event(event: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if event is None:
        return None
    shown = {name: event[name] for name in _EVENT_FIELDS if name in event}
    if isinstance(shown.get("at"), (int, float)):
        shown["at"] = iso(float(shown["at"]))
    return shown


def _task(record: Record) -> str:
    try:
        return str(record.message().get("task", ""))
    except RecordDamaged:
        return ""


def _plain_url(url: str) -> str:
    """The address without what may be secret in it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
