"""Status, log and progress of Girder jobs: one PUT carries all of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import requests

from girder_worker_slurm.errors import GirderUnreachable, JobDeleted, SlurmWorkerError
from girder_worker_slurm.girder.connection import TIMEOUT, UNUSABLE, ask_girder, girder_session

if TYPE_CHECKING:
    from girder_worker_slurm.job.state import GirderJob


class JobStatus(enum.IntEnum):
    """Girder's job states (girder_jobs.constants, girder_plugin_worker.status)."""

    INACTIVE = 0
    QUEUED = 1
    RUNNING = 2
    SUCCESS = 3
    ERROR = 4
    CANCELED = 5
    FETCHING_INPUT = 820
    CONVERTING_INPUT = 821
    CONVERTING_OUTPUT = 822
    PUSHING_OUTPUT = 823
    CANCELING = 824


FINAL = frozenset({JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED})
CANCELLED = frozenset({JobStatus.CANCELING, JobStatus.CANCELED})


class TransitionRefused(SlurmWorkerError):
    """Girder does not allow this status after the present one."""


class AccessRefused(SlurmWorkerError):
    """The job's token is not accepted (any more)."""


@dataclass(frozen=True)
class JobAnswer:
    """What Girder says about a job after an update."""

    status: int
    title: str
    #: When the Girder job was made, in seconds since the epoch; 0 if Girder does not say.
    created_at: float = 0.0


class JobUpdates:
    """Updates Girder jobs. One object serves all jobs and threads."""

    def __init__(self, session: requests.Session | None = None) -> None:
        self._session = session or girder_session()

    def update(
        self,
        job: GirderJob,
        *,
        status: JobStatus | None = None,
        log: str | None = None,
        overwrite: bool = False,
        progress: float | None = None,
        message: str | None = None,
        keep_alive: bool = False,
    ) -> JobAnswer:
        """Sends one update and returns what Girder says; without any value it only asks.

        With `keep_alive` Girder takes note that somebody still works on the job, whatever else is sent.
        Raises GirderUnreachable (try again), TransitionRefused, AccessRefused, or JobDeleted.
        """
        data: dict[str, Any] = {}
        if status is not None:
            data["status"] = int(status)
        if log:
            data["log"] = log.encode("utf-8", errors="replace")
            if overwrite:
                data["overwrite"] = "true"
        if keep_alive:
            # Shows nothing new, but only an update that sets something counts as one.
            data["progressTotal"] = 1
        if progress is not None:
            data["progressTotal"] = 1
            data["progressCurrent"] = progress
        if message:
            data["progressMessage"] = message.encode("utf-8", errors="replace")
        answer = self._call("PUT", job, data)
        return JobAnswer(
            int(answer.get("status", -1)), str(answer.get("title", "")), moment_of(answer.get("created"))
        )

    def log(self, job: GirderJob) -> str:
        """The log as Girder has it. Up to megabytes: only to settle a doubt."""
        log = self._call("GET", job, None).get("log") or []
        return log if isinstance(log, str) else "".join(str(entry) for entry in log)

    def _call(self, method: str, job: GirderJob, data: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = ask_girder(
                self._session, method, job.url, token=job.token, about=f"job {job.job_id}", data=data
            )
        except UNUSABLE as error:
            msg = f"The task names a Girder job that cannot be asked for: {type(error).__name__}."
            raise AccessRefused(msg) from error
        if response.ok:
            try:
                answer = response.json()
            except ValueError:
                answer = None
            if isinstance(answer, dict):
                return answer
            # The page of a proxy while Girder is away, say.
            msg = f"Something that is not Girder answered for job {job.job_id}."
            raise GirderUnreachable(msg)
        _raise_for(response, job)
        raise AssertionError  # unreachable: _raise_for always raises


def token_of_api_key(api_url: str, key: str) -> str:
    """A token for what this API key may do; raises AccessRefused for a key that Girder does not know, GirderUnreachable."""
    try:
        # In the body: addresses are logged.
        response = girder_session().post(f"{api_url}/api_key/token", data={"key": key}, timeout=TIMEOUT)
        answer = response.json()
    except (requests.RequestException, ValueError) as error:
        msg = f"Girder did not answer for an API key: {type(error).__name__}."
        raise GirderUnreachable(msg) from error
    if response.ok:
        return str(answer["authToken"]["token"])
    if response.status_code in (400, 401, 403):
        msg = f"Girder does not accept the API key: {answer.get('message', response.reason)}"
        raise AccessRefused(msg)
    msg = f"Girder answered {response.status_code} for an API key."
    raise GirderUnreachable(msg)


def moment_of(text: object) -> float:
    """A moment as Girder writes it, in seconds since the epoch; 0 if it is none."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _raise_for(response: requests.Response, job: GirderJob) -> None:
    """Translates Girder's refusal, here and nowhere else."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        # A proxy's page while Girder is away: no word about the job or its token.
        msg = f"Something that is not Girder answered {response.status_code} for job {job.job_id}."
        raise GirderUnreachable(msg)
    words = str(answer.get("message", response.reason))
    if response.status_code == 400 and answer.get("field") == "status":
        raise TransitionRefused(words)
    if response.status_code in (400, 404) and ("Invalid job id" in words or answer.get("field") == "id"):
        msg = f"The Girder job {job.job_id} does not exist any more."
        raise JobDeleted(msg)
    if response.status_code in (401, 403):
        msg = f"Girder does not accept the token of job {job.job_id}: {words}"
        raise AccessRefused(msg)
    msg = f"Girder answered {response.status_code} for job {job.job_id}: {words}"
    raise GirderUnreachable(msg)
