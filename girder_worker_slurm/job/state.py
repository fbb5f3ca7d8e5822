"""The state of one job as the sum of what was recorded about it. Pure: no clock, no file, no network.

A record's ``state.jsonl`` holds one entry per line; `fold` turns the entries into a `JobState`. Every change
of a job is an entry first and a new state second, so that a restarted worker arrives at the same state.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


#: Why a job whose Girder job was deleted is cancelled; nothing is reported about it.
DELETED = "deleted"
#: Clocks that are kept together differ by less.
_CLOCK_TOLERANCE_SECONDS = 60.0


class GrowingSet(AbstractSet[str]):
    """A set of texts that does not change; one with a text more costs as little at any size.

    Both share what they have in common, as long as only one has grown out of this one.
    """

    __slots__ = ("_places", "_size")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        self._size = len(self._places)

    def with_one_more(self, text: str) -> GrowingSet:
        """This set and one text."""
        if text in self:
            return self
        grown = GrowingSet(() if len(self._places) == self._size else self)
        if len(self._places) == self._size:
            grown._places = self._places
        grown._places[text] = self._size
        grown._size = self._size + 1
        return grown

    def __contains__(self, text: object) -> bool:
        place = self._places.get(text) if isinstance(text, str) else None
        return place is not None and place < self._size

    def __iter__(self) -> Iterator[str]:
        return itertools.islice(self._places, self._size)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"GrowingSet({list(self)})"


class Phase(enum.IntEnum):
    """How far a job has come. A job never goes back, except to a new attempt or submission."""

    ACCEPTED = 0
    #: Girder has been asked, the message has been understood.
    ADMITTED = 1
    #: Inputs lie in the run directory.
    STAGED = 2
    #: The SIF exists, script and argument file are written.
    RENDERED = 3
    #: The intent to submit is durable; whether Slurm has the job is not known yet.
    SUBMITTING = 4
    #: Slurm has given an id.
    SUBMITTED = 5
    #: How it ended is decided.
    DECIDED = 6
    #: All outputs are in Girder, or there are none to bring.
    DELIVERED = 7
    #: Girder and Celery know the end.
    REPORTED = 8
    #: Run directory cleaned; only log and record stay.
    CLOSED = 9


class Outcome(str, enum.Enum):
    """How a job ends, as Girder will show it."""

    SUCCESS = "success"
    ERROR = "error"
    CANCELED = "canceled"
    #: The Girder job was deleted: nothing is reported.
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class Verdict:
    """The end of a job: outcome, a word for machines, and a sentence for people."""

    outcome: Outcome
    code: str
    sentence: str
    #: Where it happened, as Slurm writes nodes, if that matters for what follows. Not part of the record.
    nodes: str = ""

    def as_entry(self) -> dict[str, str]:
        """The verdict as it is written into the record."""
        return {"outcome": self.outcome.value, "code": self.code, "sentence": self.sentence}


@dataclass(frozen=True)
class GirderJob:
    """Where the Girder job is reported to, and with which token."""

    url: str
    token: str
    title: str = ""

    @property
    def job_id(self) -> str:
        """The Girder id of the job."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def api_url(self) -> str:
        """The address of the Girder that has the job."""
        return self.url.rstrip("/").rsplit("/", 2)[0]


@dataclass(frozen=True)
class GirderUser:
    """Who runs a job, as Girder says."""

    id: str
    login: str = ""
    """Empty if Girder does not tell it."""
    email: str = ""
    """Empty if Girder does not tell it, or was not asked; it tells the groups together with it."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Id of each group → its name; empty if Girder does not tell it, as of a group that is not public."""

    def as_entry(self) -> dict[str, Any]:
        """The user as the record keeps it."""
        entry: dict[str, Any] = {"id": self.id, "login": self.login}
        return {**entry, "email": self.email, "groups": dict(self.groups)} if self.email else entry

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any] | None) -> GirderUser | None:
        """The user of a record; None for none, as in records of older versions."""
        if not entry:
            return None
        return cls(
            str(entry["id"]),
            str(entry.get("login", "")),
            str(entry.get("email", "")),
            {str(group): str(name) for group, name in (entry.get("groups") or {}).items()},
        )


@dataclass(frozen=True)
class EarlierAttempt:
    """An attempt that the infrastructure ended. Nothing that it still does counts any more."""

    token: str
    slurm_job_id: str
    #: The code of the verdict that it would have had.
    code: str
    #: Where it was, as Slurm writes nodes; empty if that is not known.
    nodes: str = ""
    log_path: str = ""
    unix_user: str = ""


@dataclass(frozen=True)
class JobState:
    """Everything a restarted worker needs to know about one job."""

    phase: Phase = Phase.ACCEPTED
    kind: str = ""
    accepted_at: float = 0.0
    girder: GirderJob | None = None
    #: Who runs it; None if Girder does not say, or was not asked.
    user: GirderUser | None = None
    #: The Unix user that the attempt runs as; empty: the worker's own.
    unix_user: str = ""
    image: str = ""
    #: The file that the rendered script runs from.
    sif: str = ""
    #: Its Girder job had ended with ERROR before and was sent again: Girder keeps that status whatever happens.
    is_revived: bool = False
    #: When the tokens of its task expire, in seconds since the epoch; 0 if that is not known.
    tokens_end_at: float = 0.0
    #: Girder was asked whether it is still wanted: when it was admitted, or else before its first submission.
    is_asked: bool = True
    attempt: int = 0
    earlier: tuple[EarlierAttempt, ...] = ()
    token: str = ""
    nonce: str = ""
    #: Name of a cluster other than the configured one: ``direct`` for what runs on the worker's host.
    cluster: str = ""
    #: sbatch options of this job; None: those of every job (in records of older versions).
    options: tuple[tuple[str, str], ...] | None = None
    slurm_job_id: str = ""
    submitted_at: float = 0.0
    started: Mapping[str, Any] | None = None
    ended: Mapping[str, Any] | None = None
    cancel: str = ""
    verdict: Verdict | None = None
    #: The analysis ended well, whatever became of its outputs.
    has_succeeded: bool = False
    #: Girder did not take the end.
    is_untold: bool = False
    hooks_done: frozenset[int] = frozenset()
    #: Those that were begun and are not finished.
    uploads: Mapping[str, str] = field(default_factory=dict)
    upload_offsets: Mapping[str, int] = field(default_factory=dict)
    uploaded: GrowingSet = field(default_factory=GrowingSet)
    result_sent: bool = False
    log_path: str = ""

    @property
    def is_final(self) -> bool:
        """Nothing is left to do."""
        return self.phase is Phase.CLOSED

    def seconds_since_submission(self, now: float) -> float:
        """How long Slurm has had it; endless if the clock was set back since, or if it is not known."""
        age = now - self.submitted_at
        return age if age > -_CLOCK_TOLERANCE_SECONDS else math.inf

    @property
    def owes_outputs(self) -> bool:
        """The analysis ended well, but Girder has not got all its outputs: they are kept in the run directory."""
        return self.has_succeeded and self.verdict is not None and self.verdict.outcome is Outcome.ERROR

    @property
    def is_in_slurm(self) -> bool:
        """Slurm has, or may have, a job of ours."""
        return self.phase in (Phase.SUBMITTING, Phase.SUBMITTED)


def fold(entries: Iterable[Mapping[str, Any]]) -> JobState:
    """The state that these entries add up to."""
    state = JobState()
    # Thousands of output files: these three grow in place here, where nobody else sees them yet.
    uploads: dict[str, str] = {}
    offsets: dict[str, int] = {}
    uploaded: dict[str, None] = {}
    for entry in entries:
        event = entry.get("event")
        if event == "upload":
            uploads[entry["key"]], offsets[entry["key"]] = entry["upload_id"], 0
        elif event == "upload_at":
            offsets[entry["key"]] = int(entry["offset"])
        elif event == "uploaded":
            uploaded[entry["key"]] = None
            uploads.pop(entry["key"], None)
            offsets.pop(entry["key"], None)
        else:
            state = apply(state, entry)
    return replace(state, uploads=uploads, upload_offsets=offsets, uploaded=GrowingSet(uploaded))


def apply(state: JobState, entry: Mapping[str, Any]) -> JobState:
    """The state after one more entry. An entry of a newer version that is not known here changes nothing."""
    change = _CHANGES.get(str(entry.get("event", "")))
    return state if change is None else change(state, entry)


def _accepted(state: JobState, entry: Mapping[str, Any]) -> JobState:
    return replace(state, accepted_at=float(entry.get("at", 0.0)))


def _admitted(state: JobState, entry: Mapping[str, Any]) -> JobState:
    job = entry.get("girder")
    girder = GirderJob(job["url"], job["token"], job.get("title", "")) if job else None
    return replace(
        state,
        phase=max(state.phase, Phase.ADMITTED),
        kind=entry.get("kind", ""),
        girder=girder,
        user=GirderUser.from_entry(entry.get("user")) or state.user,
        image=entry.get("image", ""),
        is_revived=bool(entry.get("revived", state.is_revived)),
        tokens_end_at=float(entry.get("tokens_end_at") or state.tokens_end_at),
        # Older versions asked for all.
        is_asked=bool(entry.get("asked", True)),
    )


def _user(state: JobState, entry: Mapping[str, Any]) -> JobState:
    """What Girder says about the job's user by now."""
    return replace(state, user=GirderUser.from_entry(entry.get("user")) or state.user)


def _attempt(state: JobState, entry: Mapping[str, Any]) -> JobState:
    return replace(
        state,
        phase=Phase.ADMITTED,
        attempt=int(entry["number"]),
        token=entry["token"],
        nonce=entry["nonce"],
        unix_user=str(entry.get("unix_user", "")),
        slurm_job_id="",
        started=None,
        ended=None,
        log_path=entry.get("log_path", ""),
    )


def _phase(phase: Phase) -> Any:
    def change(state: JobState, _entry: Mapping[str, Any]) -> JobState:
        return replace(state, phase=max(state.phase, phase))

    return change


def _staged(state: JobState, entry: Mapping[str, Any]) -> JobState:
    return replace(state, phase=max(state.phase, Phase.STAGED), cluster=str(entry.get("cluster", "")))


def _intent(state: JobState, entry: Mapping[str, Any]) -> JobState:
    """With the title of a Girder job that is asked only now."""
    girder = state.girder
    if girder is not None and entry.get("title"):
        girder = replace(girder, title=str(entry["title"]))
    return replace(state, phase=max(state.phase, Phase.SUBMITTING), girder=girder, is_asked=True)


def _submitted(state: JobState, entry: Mapping[str, Any]) -> JobState:
    return replace(
        state,
        phase=max(state.phase, Phase.SUBMITTED),
        slurm_job_id=str(entry["slurm_job_id"]),
        submitted_at=float(entry.get("at", 0.0)),
    )


def _lost(state: JobState, _entry: Mapping[str, Any]) -> JobState:
    """Slurm lost a submission that never started: it may be submitted again with the same token."""
    return replace(state, phase=Phase.RENDERED, slurm_job_id="")


def _rendered(state: JobState, entry: Mapping[str, Any]) -> JobState:
    options = entry.get("options")
    own = None if options is None else tuple((str(name), str(value)) for name, value in options)
    return replace(state, phase=max(state.phase, Phase.RENDERED), sif=str(entry.get("sif", "")), options=own)


def _again(state: JobState, entry: Mapping[str, Any]) -> JobState:
    """The infrastructure ended the attempt; the next one gets a token of its own."""
    if state.phase >= Phase.DECIDED or not state.token or entry.get("token", state.token) != state.token:
        return state
    over = EarlierAttempt(
        state.token,
        state.slurm_job_id,
        str(entry.get("code", "launch_failed")),
        str(entry.get("nodes", "")),
        state.log_path,
        state.unix_user,
    )
    return replace(
        state,
        phase=Phase.ADMITTED,
        earlier=(*state.earlier, over),
        token="",
        nonce="",
        options=None,
        slurm_job_id="",
        submitted_at=0.0,
        started=None,
        ended=None,
        log_path="",
    )


def _started(state: JobState, entry: Mapping[str, Any]) -> JobState:
    if entry.get("token") != state.token:
        return state
    return replace(state, started=entry, slurm_job_id=str(entry.get("slurm_job_id") or state.slurm_job_id))


def _ended(state: JobState, entry: Mapping[str, Any]) -> JobState:
    if entry.get("token") != state.token or state.ended is not None:
        return state
    return replace(state, ended=entry, slurm_job_id=str(entry.get("slurm_job_id") or state.slurm_job_id))


def _cancel(state: JobState, entry: Mapping[str, Any]) -> JobState:
    why = str(entry.get("why") or "cancelled")
    # The first reason stays; but once the Girder job is gone there is nobody to report to.
    return replace(state, cancel=why) if not state.cancel or why == DELETED else state


def _verdict(state: JobState, entry: Mapping[str, Any]) -> JobState:
    verdict = Verdict(Outcome(entry["outcome"]), entry["code"], entry["sentence"])
    return replace(
        state,
        phase=max(state.phase, Phase.DECIDED),
        verdict=verdict,
        has_succeeded=state.has_succeeded or verdict.outcome is Outcome.SUCCESS,
    )


def _hook_done(state: JobState, entry: Mapping[str, Any]) -> JobState:
    return replace(state, hooks_done=state.hooks_done | {int(entry["index"])})


def _upload(state: JobState, entry: Mapping[str, Any]) -> JobState:
    key = entry["key"]
    return replace(
        state,
        uploads={**state.uploads, key: entry["upload_id"]},
        upload_offsets={**state.upload_offsets, key: 0},
    )


def _upload_at(state: JobState, entry: Mapping[str, Any]) -> JobState:
    return replace(state, upload_offsets={**state.upload_offsets, entry["key"]: int(entry["offset"])})


def _uploaded(state: JobState, entry: Mapping[str, Any]) -> JobState:
    # Of a hundred thousand files only those under way are kept with their uploads, which each entry copies.
    key = entry["key"]
    return replace(
        state,
        uploads={known: upload for known, upload in state.uploads.items() if known != key},
        upload_offsets={known: offset for known, offset in state.upload_offsets.items() if known != key},
        uploaded=state.uploaded.with_one_more(key),
    )


def _untold(state: JobState, _entry: Mapping[str, Any]) -> JobState:
    return replace(state, is_untold=True)


def _told_late(state: JobState, _entry: Mapping[str, Any]) -> JobState:
    return replace(state, is_untold=False)


def _result_sent(state: JobState, _entry: Mapping[str, Any]) -> JobState:
    return replace(state, result_sent=True)


_CHANGES: dict[str, Any] = {
    "accepted": _accepted,
    "admitted": _admitted,
    "user": _user,
    "attempt": _attempt,
    "staged": _staged,
    "rendered": _rendered,
    "intent": _intent,
    "submitted": _submitted,
    "lost": _lost,
    "again": _again,
    "started": _started,
    "ended": _ended,
    "cancel": _cancel,
    "verdict": _verdict,
    "hook_done": _hook_done,
    "upload": _upload,
    "upload_at": _upload_at,
    "uploaded": _uploaded,
    "delivered": _phase(Phase.DELIVERED),
    "untold": _untold,
    "told_late": _told_late,
    "result_sent": _result_sent,
    "reported": _phase(Phase.REPORTED),
    "closed": _phase(Phase.CLOSED),
}
