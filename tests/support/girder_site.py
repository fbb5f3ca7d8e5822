"""A stock Girder as a scientist uses it: uploads, ingests, runs CLIs, looks at jobs. All through its REST API."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.stack import Stack

INACTIVE, QUEUED, RUNNING, SUCCESS, ERROR, CANCELED, CANCELING = 0, 1, 2, 3, 4, 5, 824
FINAL = (SUCCESS, ERROR, CANCELED)


#: What GIRDER_WORKER_JOB_GC_SCOPE adds to the tokens that Girder makes for inputs and outputs.
_ADD_SCOPE = (
    "import sys; from girder.models.token import Token;"
    "print(Token().update({'scope': 'core.data.write', 'userId': {'$ne': None}},"
    " {'$addToSet': {'scope': 'core.user_info.read'}}).modified_count)"
)


class NotReached(AssertionError):
    """A condition did not come true in time; says what was seen last."""


def wait_until(
    what: str,
    look: Callable[[], Any],
    *,
    seconds: float = 60.0,
    every: float = 0.1,
    give_up: Callable[[], str] | None = None,
) -> Any:
    """The first true answer of `look`; raises NotReached with the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        reason = give_up() if give_up is not None else ""
        if reason or time.monotonic() > deadline:
            msg = f"{what}: not within {seconds} s; last seen: {answer!r} {reason}"
            raise NotReached(msg)
        time.sleep(every)


@dataclass
class GirderSite:
    """One Girder, logged in as its administrator, or as another user."""

    stack: Stack
    name: str = ""
    password: str = ""
    session: requests.Session = field(default_factory=requests.Session)
    token: str = ""

    @property
    def api(self) -> str:
        """Address of the REST API."""
        return self.stack["GIRDER_API_URL"]

    def login(self) -> GirderSite:
        """This site, logged in."""
        answer = self.session.get(
            f"{self.api}/user/authentication",
            auth=(
                self.name or self.stack["GIRDER_ADMIN_LOGIN"],
                self.password or self.stack["GIRDER_ADMIN_PASSWORD"],
            ),
            timeout=30,
        )
        answer.raise_for_status()
        self.token = answer.json()["authToken"]["token"]
        self.session.headers["Girder-Token"] = self.token
        return self

    def new_user(self, name: str) -> GirderSite:
        """The same Girder as a new user sees it, who is no administrator."""
        password = uuid.uuid4().hex
        person = {"firstName": name, "lastName": "Tester", "email": f"{name}@example.org"}
        self.call("POST", "user", params={"login": name, "password": password, **person})
        return GirderSite(self.stack, name, password).login()

    def call(self, method: str, path: str, *, ok: bool = True, **kwargs: Any) -> Any:
        """Girder's answer as JSON."""
        if method in ("POST", "PUT") and "data" not in kwargs:
            kwargs["data"] = ""
        answer = self.session.request(method, f"{self.api}/{path}", timeout=60, **kwargs)
        if ok and not answer.ok:
            msg = f"{method} {path}: {answer.status_code} {answer.text[:500]}"
            raise AssertionError(msg)
        return answer.json() if answer.content else None

    def new_folder(self, name: str = "") -> str:
        """The id of a new folder of the administrator."""
        user = self.call("GET", "user/me")
        name = name or f"test-{uuid.uuid4().hex[:8]}"
        params = {"parentType": "user", "parentId": user["_id"], "name": name, "reuseExisting": "true"}
        return str(self.call("POST", "folder", params=params)["_id"])

    def upload(self, folder: str, name: str, data: bytes) -> str:
        """The id of a new file."""
        params = {"parentType": "folder", "parentId": folder, "name": name, "size": len(data)}
        made = self.session.post(f"{self.api}/file", params=params, data=io.BytesIO(data), timeout=60)
        made.raise_for_status()
        return str(made.json()["_id"])

    def files(self, folder: str) -> dict[str, bytes]:
        """All files below a folder: path → content."""
        found: dict[str, bytes] = {}
        for item in self.call("GET", "item", params={"folderId": folder, "limit": 0}):
            for file in self.call("GET", f"item/{item['_id']}/files", params={"limit": 0}):
                content = self.session.get(f"{self.api}/file/{file['_id']}/download", timeout=60).content
                name = file["name"]
                found[name if name not in found else f"{name}#{file['_id']}"] = content
        for child in self.call(
            "GET", "folder", params={"parentType": "folder", "parentId": folder, "limit": 0}
        ):
            found |= {
                f"{child['name']}/{name}": content for name, content in self.files(child["_id"]).items()
            }
        return found

    def count(self, folder: str) -> int:
        """How many items a folder has."""
        return int(self.call("GET", f"folder/{folder}/details")["nItems"])

    def ingest(self, image: str, *, seconds: float = 120.0, expect: int = SUCCESS) -> dict[str, Any]:
        """The ended job that ingested an image."""
        folder = self.call("GET", "system/setting", params={"key": "slicer_cli_web.task_folder"})
        job = self.call(
            "PUT", "slicer_cli_web/docker_image", params={"name": json.dumps(image), "folder": folder}
        )
        ended = self.wait_for_end(job["_id"], seconds=seconds)
        assert ended["status"] == expect, _log(ended)
        return ended

    def new_job(self, title: str) -> tuple[str, dict[str, Any]]:
        """A new job that nobody runs, and the specification by which a worker reports to it."""
        code = (
            "import sys; from girder.models.user import User; from girder_jobs.models.job import Job;"
            "user = User().findOne({'login': sys.argv[1]});"
            "job = Job().createJob(title=sys.argv[2], type='celery', handler='celery_handler', user=user);"
            "print(job['_id'], Job().createJobToken(job)['_id'])"
        )
        job, token = self.inside(code, self.stack["GIRDER_ADMIN_LOGIN"], title)[-2:]
        return job, {
            "method": "PUT",
            "url": f"{self.api}/job/{job}",
            "headers": {"Girder-Token": token},
            "logPrint": True,
        }

    def tell_groups(self) -> None:
        """Lets the tokens of all tasks that wait tell e-mail address and groups, as GIRDER_WORKER_JOB_GC_SCOPE would have."""
        assert int(self.inside(_ADD_SCOPE)[-1]) > 0

    def inside(self, code: str, *arguments: str) -> list[str]:
        """The words that a program prints which uses Girder's own models."""
        done = subprocess.run(
            [self.stack["GIRDER_PYTHON"], "-c", code, *arguments],
            env={"PATH": os.environ["PATH"], "GIRDER_MONGO_URI": self.stack["GIRDER_MONGO_URI"]},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.split()

    def cli(self, image: str, name: str) -> str:
        """The id of an ingested CLI."""
        for cli in self.call("GET", "slicer_cli_web/cli"):
            if cli["name"] == name and cli["image"] == image:
                return str(cli["_id"])
        msg = f"{image} has no CLI {name}"
        raise AssertionError(msg)

    def run(self, cli: str, **params: Any) -> str:
        """The id of the job that runs a CLI."""
        return str(self.call("POST", f"slicer_cli_web/cli/{cli}/run", params=params)["_id"])

    def job(self, job: str) -> dict[str, Any]:
        """A job with its log."""
        found: dict[str, Any] = self.call("GET", f"job/{job}")
        return found

    def status(self, job: str) -> int:
        """A job's status."""
        return int(self.job(job)["status"])

    def log(self, job: str) -> str:
        """A job's log."""
        return _log(self.job(job))

    def cancel(self, job: str) -> None:
        """Presses Cancel."""
        self.call("PUT", f"job/{job}/cancel")

    def wait_for(self, job: str, *statuses: int, seconds: float = 60.0) -> dict[str, Any]:
        """The job once it has one of these states; gives up at another final one."""
        seen: dict[str, Any] = {}

        def look() -> dict[str, Any] | None:
            seen.update(self.job(job))
            return dict(seen) if seen["status"] in statuses else None

        def give_up() -> str:
            return f"it ended with {seen['status']}: {_log(seen)}" if seen.get("status") in FINAL else ""

        try:
            found: dict[str, Any] = wait_until(
                f"job {job} in {statuses}", look, seconds=seconds, give_up=give_up
            )
        except NotReached as error:
            msg = f"{error}; status {seen.get('status')}, progress {seen.get('progress')}, log: {_log(seen)[-2000:]}"
            raise NotReached(msg) from None
        return found

    def wait_for_end(self, job: str, *, seconds: float = 60.0) -> dict[str, Any]:
        """The job once it has ended."""
        return self.wait_for(job, *FINAL, seconds=seconds)

    def log_at_end(self, job: str, status: int = SUCCESS, *, seconds: float = 90.0) -> str:
        """The log of a job that has ended as it should, with this status."""
        ended = self.wait_for_end(job, seconds=seconds)
        assert ended["status"] == status, _log(ended)
        return _log(ended)


def _log(job: dict[str, Any]) -> str:
    log = job.get("log") or []
    return log if isinstance(log, str) else "".join(log)
