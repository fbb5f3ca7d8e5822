"""Whatever happens in whatever order, each job ends once, with the truth.

A model of a site: jobs come and are cancelled, Slurm runs, loses, fails and forgets them, services go away and come back,
and the worker dies at any entry of any record. What is true of a container is noted where it is pretended; at the end it is
compared with what Girder and Celery were told.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from girder_worker_slurm.job.retries import RetryRules
from girder_worker_slurm.job.state import Outcome
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.site import Site, WorkerDied

SUCCESS, ERROR, CANCELED = 3, 4, 5
OUTPUT = b"what the analysis says\n"
RUNNING = ("RUNNING",)
ENDS_WITHOUT_A_WORD = ("NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "TIMEOUT", "FAILED", "CANCELLED")
INFRASTRUCTURE = ("NODE_FAIL", "PREEMPTED")


class AnyOrder(RuleBasedStateMachine):
    """One worker, and all that may befall it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="any-order-"))
        self.site = Site(self.directory, retries=RetryRules(infrastructure=2, preemption=3))
        self.site.one_step_a_turn = True
        self.site.cluster.default_program = FakeProgram(output=OUTPUT)
        self.tasks: list[str] = []
        self.cancelled: set[str] = set()
        #: Token → containers that ran, and the exit code of the one that said how it ended.
        self.runs: Counter[str] = Counter()
        self.said: dict[str, int] = {}
        #: Tokens whose job the infrastructure ended.
        self.failed: set[str] = set()

    # -- what people do

    @rule()
    def a_task_comes(self) -> None:
        if len(self.tasks) < 4:
            self.tasks.append(f"t{len(self.tasks)}")
            self.site.task(self.tasks[-1])

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def somebody_cancels(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        self.cancelled.add(task)
        self.site.revoked.add(task)

    # -- what the worker does and suffers

    @rule(turns=st.integers(1, 8))
    def the_worker_works(self, turns: int) -> None:
        for _ in range(turns):
            self._turn()

    @rule(entry=st.integers(0, 6), is_before=st.booleans())
    def the_worker_dies_at_an_entry(self, entry: int, is_before: bool) -> None:
        death = self.site.death
        death.at_entry, death.is_before = death.seen + entry, is_before
        for _ in range(30):
            self._turn()
        death.at_entry = -1

    @rule()
    def the_worker_is_killed(self) -> None:
        self.site.restart()

    @rule(seconds=st.sampled_from([1.0, 20.0, 120.0]))
    def time_passes(self, seconds: float) -> None:
        self.site.clock.advance(seconds)

    # -- what Slurm does

    @rule()
    def slurm_starts_what_waits(self) -> None:
        for job in self._jobs("PENDING"):
            self._start(job)

    @rule(code=st.sampled_from([0, 0, 3]), is_heard=st.booleans())
    def containers_end(self, code: int, is_heard: bool) -> None:
        for job in self._jobs("RUNNING"):
            self._finish(job, code, is_heard=is_heard)

    @rule(state=st.sampled_from(ENDS_WITHOUT_A_WORD), number=st.integers(0, 3))
    def slurm_ends_a_job(self, state: str, number: int) -> None:
        jobs = self._jobs("RUNNING", "PENDING")
        if jobs:
            job = jobs[number % len(jobs)]
            self.site.cluster.end(job.slurm_job_id, state)
            self.failed.add(job.token)

    @rule(number=st.integers(0, 3))
    def slurm_forgets_an_ended_job(self, number: int) -> None:
        jobs = [job for job in self.site.cluster.jobs.values() if job.is_final]
        if jobs:
            self.site.cluster.forget(jobs[number % len(jobs)].slurm_job_id)

    @rule(number=st.integers(0, 3))
    def the_controller_loses_a_waiting_job(self, number: int) -> None:
        jobs = self._jobs("PENDING")
        if jobs:
            self.site.cluster.forget(jobs[number % len(jobs)].slurm_job_id)

    @rule(is_taken=st.booleans())
    def an_answer_of_sbatch_gets_lost(self, is_taken: bool) -> None:
        self.site.cluster.lose_answer_of_next_submit(is_taken=is_taken)

    @rule(number=st.integers(0, 3))
    def a_submission_surfaces_late(self, number: int) -> None:
        jobs = list(self.site.cluster.jobs.values())
        if jobs:
            job = jobs[number % len(jobs)]
            cluster = self.site.cluster
            mishaps, cluster._mishaps = cluster._mishaps, type(cluster._mishaps)()
            cluster.submit(job.submission)
            cluster._mishaps = mishaps

    # -- what goes away

    @rule(away=st.booleans())
    def slurm_is_away(self, away: bool) -> None:
        self.site.cluster.is_unreachable = away

    @rule(away=st.booleans())
    def girder_is_away(self, away: bool) -> None:
        self.site.girder.is_unreachable = away

    @rule(answers=st.integers(1, 3))
    def answers_of_girder_get_lost(self, answers: int) -> None:
        self.site.girder.lost_answers = answers

    # -- the end

    def teardown(self) -> None:
        try:
            self._bring_to_an_end()
            for task in self.tasks:
                self._check(task)
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _bring_to_an_end(self) -> None:
        site = self.site
        site.cluster.is_unreachable = site.girder.is_unreachable = False
        site.girder.lost_answers = 0
        site.cluster._mishaps.clear()
        site.death.at_entry = -1
        for _ in range(6000):
            self._turn()
            for job in self._jobs("RUNNING"):
                self._finish(job, 0, is_heard=True)
            for job in self._jobs("PENDING"):
                self._start(job)
            if site.supervisor.live_count == 0:
                return
        raise AssertionError(site.describe())

    def _check(self, task: str) -> None:
        site, state = self.site, self.site.state(task)
        shown = site.shown(task)
        end = state.verdict.outcome
        assert shown.status in (SUCCESS, ERROR, CANCELED)
        assert {what for what, task_id, _ in site.results.sent if task_id == task} == {
            {SUCCESS: "success", ERROR: "failure", CANCELED: "revoked"}[shown.status]
        }
        tokens = [earlier.token for earlier in state.earlier] + ([state.token] if state.token else [])
        # One container an attempt, and a new attempt only after the infrastructure ended the one before.
        assert all(self.runs[token] <= 1 for token in tokens), self.runs
        assert {earlier.token for earlier in state.earlier} <= self.failed
        if shown.status == SUCCESS:
            assert self.said.get(state.token) == 0, (self.said, state)
            assert shown.text.count(OUTPUT.decode()) == 1, shown.text
        if self.said.get(state.token) not in (None, 0) and state.ended is not None:
            assert shown.status != SUCCESS
        if shown.status == CANCELED:
            assert task in self.cancelled
        if end is Outcome.ERROR and state.token and state.verdict.code == "exit_code":
            assert self.said.get(state.token) not in (None, 0)

    # -- inside

    def _turn(self) -> None:
        try:
            self.site.turn()
        except WorkerDied:
            self.site.restart()

    def _jobs(self, *states: str):
        return [job for job in self.site.cluster.jobs.values() if job.state in states and not job.is_held]

    def _start(self, job) -> None:
        if self.site.cluster.start(job.slurm_job_id):
            self.runs[job.token] += 1

    def _finish(self, job, code: int, *, is_heard: bool) -> None:
        if not job.has_run:
            return
        if is_heard:
            self.said[job.token] = code
        self.site.cluster.finish(job.slurm_job_id, exit_code=code, is_heard=is_heard)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
