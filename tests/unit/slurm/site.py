"""A whole worker on pretended surroundings, driven by hand: no thread, no waiting, time moves when told to.

What lies on the disk is real; Slurm, Girder, images and Celery are pretended. `Site.restart` is a worker that died
and came up again with nothing but its directories.
"""

from __future__ import annotations

import contextlib
import json
import queue
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

from celery import Celery

from girder_worker_singularity.image.config import ImageConfig
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.sif.shelf import Sif
from girder_worker_singularity.testing import FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.cluster.user_run_files import UserUnreachable
from girder_worker_slurm.errors import ClusterUnreachable
from girder_worker_slurm.girder.inputs import StagingRules
from girder_worker_slurm.job.retries import RetryRules
from girder_worker_slurm.job.run_job import JobStory
from girder_worker_slurm.job.services import Services, StoryRules
from girder_worker_slurm.job.submit_turns import SubmitRules
from girder_worker_slurm.job.supervisor import Supervisor, SupervisorRules
from girder_worker_slurm.records.cancel_request import cancel_news
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.testing import FakeCluster
from girder_worker_slurm.users.mapping import UserMapping
from girder_worker_slurm.users.unix_users import UnixUserRules
from tests.unit.slurm.fake_girder import FakeGirder, GirderJobOfFake

RUN_CLI = "slicer_cli_web.girder_worker_plugin.direct_docker_run.run"
API = "http://girder.test/api/v1"

#: Most tests are about how one attempt ends.
ONE_TRY = RetryRules(infrastructure=0, preemption=0)

_SUBMIT_RULES = [rule.name for rule in fields(SubmitRules)]


class FakeImages:
    """A store of images: those in `at_hand` are there, `error` is what making the others gives."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.path = root / "x.sif"
        self.path.touch()
        self.at_hand: set[str] = set()
        self.error: BaseException | None = None
        self.made: list[tuple[str, str]] = []

    def find(self, image):
        return self._sif(image) if image in self.at_hand else None

    def find_for(self, image, policy):
        return None if policy == "always" else self.find(image)

    def ensure(self, image, *, policy="if-not-present", on_progress=None, should_stop=None):
        del on_progress, should_stop
        self.made.append((image, policy))
        if self.error is not None:
            raise self.error
        self.at_hand.add(image)
        return self._sif(image)

    def _sif(self, image):
        config = ImageConfig(entrypoint=("/bin/tool",), command=("--help",))
        return Sif(self.path, parse_image_reference(image), config)


class FakeResults:
    """The Celery results that were sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, object]] = []

    def success(self, task, task_id, decoded, value) -> None:
        del task, decoded
        self.sent.append(("success", task_id, value))

    def failure(self, task, task_id, decoded, sentence) -> None:
        del task, decoded
        self.sent.append(("failure", task_id, sentence))

    def revoked(self, task, task_id, decoded, sentence) -> None:
        del task, decoded
        self.sent.append(("revoked", task_id, sentence))


class WorkerDied(BaseException):
    """kill -9 at this very place."""


@dataclass
class Death:
    """When the worker dies: at the entry of this number, before or after it is on the disk."""

    at_entry: int = -1
    is_before: bool = False
    seen: int = 0
    has_come: bool = False

    def before(self) -> None:
        self._die(self.is_before)

    def after(self) -> None:
        self._die(not self.is_before)
        self.seen += 1

    def _die(self, applies: bool) -> None:
        if applies and self.seen == self.at_entry:
            self.at_entry = -1
            self.has_come = True
            raise WorkerDied


class MortalRecord(Record):
    """A record that may see its worker die while it is written."""

    __slots__ = ("death", "on_append")

    def append(self, event, *, durable=False, **fields):
        death = getattr(self, "death", None) or Death()
        death.before()
        state = super().append(event, durable=durable, **fields)
        death.after()
        return state


class HandPool:
    """A pool that does its work at once, in the caller's thread."""

    def __init__(self, death: Death) -> None:
        self._death = death

    def submit(self, work, *arguments, user="") -> None:
        del user
        work(*arguments)
        if self._death.has_come:
            raise WorkerDied

    def is_waited_for(self) -> bool:
        return False


class Site:
    """One worker and what is around it."""

    def __init__(self, tmp_path: Path, *, retries: RetryRules = ONE_TRY, **rules) -> None:
        self.clock = FakeClock()
        self.cluster = FakeCluster(self.clock)
        self.direct = FakeCluster(self.clock)
        self.girder = FakeGirder(self.clock)
        self.images = FakeImages(tmp_path / "sifs")
        self.images.at_hand.add("image:1")
        self.results = FakeResults()
        self.revoked: set[str] = set()
        self.death = Death()
        self.root = JobsRoot(tmp_path / "jobs", "w1")
        self.root.prepare()
        self.runs = RunDirectories(self.root.path)
        self.runs.prepare()
        #: Where the files of other Unix users are, each as far as this test's own user is concerned.
        self.others: dict[str, RunDirectories] = {}
        #: Unix users whose files cannot be reached.
        self.unreachable: set[str] = set()
        self.unix_users = UnixUserRules(("*",), minimum_uid=0)
        self.app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(accept_content=["json"])
        self.unhandled: list[str] = []
        submits = {name: rules.pop(name) for name in _SUBMIT_RULES if name in rules}
        self.rules = {
            "event_seconds": 0.25,
            "poll_seconds": 15.0,
            "submits": SubmitRules(**submits),
            **rules,
        }
        #: Otherwise one turn does everything that is due, one step of a job after the other.
        self.one_step_a_turn = False
        self.apptainer = "apptainer"
        self.event_grace_seconds = 5.0
        #: Empty: that of the task.
        self.girder_api_url = API
        self.users = UserMapping()
        self.submit_options: tuple[tuple[str, str], ...] = ()
        self.retries = retries
        self.restart()

    # -- the worker

    def restart(self, **instead) -> None:
        """A worker that knows only what is on the disk; with `instead` of some of its services."""
        self.death.has_come = False
        services = Services(
            clock=self.clock,
            runner=FakeCommandRunner(),
            cluster=self.cluster,
            direct=self.direct,
            runs=self.runs,
            runs_as=self.runs_as,
            images=self.images,
            updates=self.girder,
            users=self.girder,
            girder_settings=self.girder.settings_of,
            results=self.results,
            is_revoked=lambda task_id: task_id in self.revoked,
            cancel_news=lambda: cancel_news(self.root.records),
            keep_unhandled=lambda _message, why: self.unhandled.append(why),
            **instead,
        )
        story_rules = StoryRules(
            jobs_root=self.root.path,
            token_prefix="gw-test-",
            apptainer=self.apptainer,
            slurm_options=self.submit_options,
            staging=StagingRules(api_url=self.girder_api_url),
            users=self.users,
            unix_users=self.unix_users,
            retries=self.retries,
            event_grace_seconds=self.event_grace_seconds,
        )
        self.story = JobStory(services, story_rules)
        self.supervisor = Supervisor(
            services,
            self.story,
            SupervisorRules(token_prefix="gw-test-", **self.rules),
            on_ended=self.root.end,
        )
        self.supervisor._pools = dict.fromkeys(
            ("girder", "stage", "image", "submit", "deliver", "clean"), HandPool(self.death)
        )
        for record in self.root.own_records():
            self.supervisor._take(self._mortal(record.path))
        self._next_listing = self.clock.monotonic() + self.rules["poll_seconds"]

    def runs_as(self, user: str) -> RunDirectories:
        if user in self.unreachable:
            raise UserUnreachable(f"nothing can be run as {user}")
        if user not in self.others:
            self.others[user] = RunDirectories(self.root.path.parent / "others" / user)
            self.others[user].prepare()
        return self.others[user]

    def turn(self) -> None:
        """A quarter of a second of the worker's life; everything that is due is done."""
        if self.clock.monotonic() >= self._next_listing or self.supervisor._queue._look_now.is_set():
            self.supervisor._queue._look_now.clear()
            self._next_listing = self.clock.monotonic() + self.rules["poll_seconds"]
            if any(job.state.is_in_slurm for job in self.supervisor._jobs.values()):
                # As in the queue's own thread: a listing that fails changes nothing.
                with contextlib.suppress(ClusterUnreachable):
                    self.supervisor._queue._found.put(self.cluster.snapshot())
        for _ in range(40):
            self.supervisor._turn()
            if self._is_calm():
                break
        self.clock.advance(self.rules["event_seconds"])

    def _is_calm(self) -> bool:
        if self.one_step_a_turn:
            return True
        worker = self.supervisor
        is_due = worker._due and worker._due[0][0] <= self.clock.monotonic()
        return (
            not is_due
            and worker._finished.empty()
            and not worker._images.has_served
            and worker._incoming.empty()
        )

    def run_until(self, condition, *, seconds: float = 600.0, steps_slurm: bool = True) -> None:
        """Lets time pass until something is so; the last thing seen is told when it does not come."""
        until = self.clock.monotonic() + seconds
        while not condition():
            assert self.clock.monotonic() < until, self.describe()
            self.turn()
            if steps_slurm:
                self.cluster.step()

    def run_to_the_end(self, **how) -> None:
        self.run_until(lambda: self.supervisor.live_count == 0 and self.supervisor._incoming.empty(), **how)

    def run_for(self, seconds: float, *, steps_slurm: bool = False) -> None:
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.turn()
            if steps_slurm:
                self.cluster.step()

    def describe(self) -> str:
        jobs = {job.task_id: job.state for job in self.supervisor._jobs.values()}
        return f"jobs {jobs}\nslurm {self.cluster.jobs}\ngirder {self.girder.jobs}"

    # -- tasks

    def task(
        self, task_id: str = "t1", *, arguments=("a", "b"), image="image:1", status=1, **kwargs
    ) -> Record:
        """A task that was just taken from the queue."""
        self.girder.jobs.setdefault(f"job-{task_id}", GirderJobOfFake(status=status))
        message = message_of(task_id, image=image, container_args=list(arguments), pull_image=False, **kwargs)
        record = Record.create(self.root.records, message, worker_id="w1", at=self.clock.now())
        assert record is not None
        mortal = self._mortal(record.path)
        self.supervisor.accept(mortal)
        return mortal

    def _mortal(self, path: Path) -> MortalRecord:
        record = MortalRecord.load(path, worker_id="w1")
        record.death = self.death
        return record

    def job(self, task_id: str = "t1"):
        return self.supervisor._jobs[task_id]

    def state(self, task_id: str = "t1"):
        """The recorded state, of an ended job as well."""
        for parent in (self.root.records, self.root.ended):
            if (parent / task_id).exists():
                return Record.load(parent / task_id, worker_id="w1").state
        raise AssertionError(task_id)

    def entries(self, task_id: str = "t1") -> list[str]:
        for parent in (self.root.records, self.root.ended):
            path = parent / task_id / "state.jsonl"
            if path.exists():
                return [json.loads(line)["event"] for line in path.read_text().splitlines()]
        raise AssertionError(task_id)

    def shown(self, task_id: str = "t1") -> GirderJobOfFake:
        return self.girder.jobs[f"job-{task_id}"]

    def calls(self, method: str) -> list[object]:
        return [what for name, what in self.cluster.calls if name == method]

    def slurm_jobs(self, task_id: str = "t1"):
        return [job for job in self.cluster.jobs.values() if job.token == self.state(task_id).token]

    def is_in(self, phase, task_id: str = "t1"):
        return lambda: self.state(task_id).phase >= phase


def message_of(task_id: str, *, task=RUN_CLI, hooks=None, **kwargs) -> dict:
    """A message as the record keeps it."""
    headers = {
        "id": task_id,
        "task": task,
        "jobInfoSpec": {"url": f"{API}/job/job-{task_id}", "headers": {"Girder-Token": "token"}},
        "girder_api_url": API,
    }
    if hooks:
        headers["girder_result_hooks"] = hooks
    return {
        "task_id": task_id,
        "task": task,
        "queue": "celery",
        "headers": headers,
        "properties": {"correlation_id": task_id},
        "delivery_info": {},
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "body": json.dumps([[], kwargs, {}]),
    }


def broker_message(body, *, headers=None, properties=None, content_type="application/json", **fields):
    """Something that looks like a kombu message."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return SimpleNamespace(
        body=raw,
        headers=headers or {},
        properties=properties or {},
        delivery_info=fields.get("delivery_info", {"routing_key": "celery", "redelivered": False}),
        content_type=content_type,
        content_encoding=fields.get("content_encoding", "utf-8"),
        payload=body,
    )


def drained(source: queue.SimpleQueue) -> list:
    items = []
    while not source.empty():
        items.append(source.get_nowait())
    return items
