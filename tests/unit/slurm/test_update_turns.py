"""Forty writing jobs are live within two seconds; more of them share the budget, the longest waiting first."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.job.live_job import LiveJob
from girder_worker_slurm.job.state import GirderJob, GirderUser, JobState, Phase
from girder_worker_slurm.job.supervisor import SupervisorRules
from girder_worker_slurm.job.update_turns import UpdateTurns
from tests.unit.slurm.running_jobs import running

_RULES = SupervisorRules(token_prefix="gw-")


class WritingStory:
    """Every job has always written something new."""

    def feed(self, _job):
        return SimpleNamespace(has_new_output=lambda **_how: True, has_pending=True)


class SilentStory:
    """No job has written anything."""

    def feed(self, _job):
        return SimpleNamespace(has_new_output=lambda **_how: False, has_pending=False)


def turns_in(clock, story=None, *, per_second):
    """Turns with the usual pauses."""
    return UpdateTurns(
        story or WritingStory(),
        clock,
        per_second=per_second,
        interval_seconds=1.0,
        status_check_seconds=600.0,
    )


def running_jobs(number, user="ada"):
    state = JobState(
        phase=Phase.SUBMITTED,
        girder=GirderJob("http://g/job/1", "t"),
        started={"at": 1},
        user=GirderUser(user),
    )
    jobs = [LiveJob(SimpleNamespace(state=state, task_id=f"{user[3:]}{index}")) for index in range(number)]
    for job in jobs:
        job.announced = True
        job.first_log_look = 0.001  # long ago
    return jobs


def longest_gaps(number, *, seconds, others=()):
    """How long each of so many writing jobs waits for its turn at most."""
    clock = FakeClock()
    turns = UpdateTurns(
        WritingStory(),
        clock,
        per_second=_RULES.updates_per_second,
        interval_seconds=_RULES.log_interval_seconds,
        status_check_seconds=_RULES.status_check_seconds,
    )
    jobs = [*running_jobs(number), *others]
    last = {job.task_id: clock.monotonic() for job in jobs}
    gaps = dict.fromkeys(last, 0.0)
    sent = 0
    for _ in range(int(seconds / _RULES.event_seconds)):
        for job in turns.choose(jobs, clock.monotonic()):
            gaps[job.task_id] = max(gaps[job.task_id], clock.monotonic() - last[job.task_id])
            last[job.task_id] = clock.monotonic()
            sent += 1
        clock.advance(_RULES.event_seconds)
    # Whoever had no turn at all has waited too.
    return {task: max(gap, clock.monotonic() - last[task]) for task, gap in gaps.items()}, sent


@pytest.mark.parametrize("number", [1, 10, 40])
def test_up_to_forty_writing_jobs_have_their_turn_every_two_seconds(number):
    gaps, _ = longest_gaps(number, seconds=60)
    assert max(gaps.values()) <= 2.0


@pytest.mark.parametrize("number", [41, 50, 63])
def test_a_job_that_missed_its_turn_is_among_the_next(number):
    """It used to be looked at again a second later only, behind jobs that had been shown meanwhile."""
    gaps, _ = longest_gaps(number, seconds=60)
    assert max(gaps.values()) <= number / _RULES.updates_per_second + _RULES.event_seconds


def test_a_status_check_that_found_no_place_in_the_budget_is_made_up_for():
    clock = FakeClock()
    turns = turns_in(clock, SilentStory(), per_second=1.0)
    jobs = running_jobs(3)
    for job in jobs:
        job.last_flush = 0.0
    seen = []
    for _ in range(6):
        clock.advance(1.0)
        seen += turns.choose(jobs, clock.monotonic())
    assert sorted(job.task_id for job in seen) == ["0", "1", "2"]


def test_with_more_jobs_the_budget_is_kept_and_nobody_is_forgotten():
    gaps, sent = longest_gaps(400, seconds=120)
    assert sent <= _RULES.updates_per_second * 121
    assert max(gaps.values()) <= 400 / _RULES.updates_per_second + 2


@pytest.mark.parametrize("is_shown", [True, False])
def test_thousands_of_one_user_do_not_stand_before_the_few_of_others(is_shown):
    others = [job for user in ("ada-b", "ada-c") for job in running_jobs(2, user)]
    for job in others:
        job.announced = is_shown
    gaps, sent = longest_gaps(1000, seconds=30, others=others)
    # Three seconds: with so many jobs a log is looked at every other second.
    assert max(gaps[job.task_id] for job in others) <= 3.0
    assert sent >= _RULES.updates_per_second * 27


def test_many_busy_users_have_their_turns_alike():
    others = [job for number in range(12) for job in running_jobs(30, f"ada-{number}-")]
    gaps, _ = longest_gaps(0, seconds=60, others=others)
    last = {}
    for task, gap in gaps.items():
        last.setdefault(task.split("-")[1], []).append(gap)
    assert max(max(found) for found in last.values()) <= 360 / _RULES.updates_per_second + 10


def test_a_job_that_is_not_shown_yet_comes_before_those_that_are():
    clock = FakeClock()
    turns = turns_in(clock, per_second=1.0)
    jobs = running_jobs(5)
    jobs[3].announced = False
    assert turns.choose(jobs, clock.monotonic() + 10) == [jobs[3]]


def test_jobs_that_wait_for_an_image_are_told_each_phase_once_within_the_budget():
    clock = FakeClock()
    turns = turns_in(clock, per_second=2.0)
    jobs = running_jobs(3)
    for job in jobs:
        job.is_parked = True
        job.image_phase = "Image a: fetching layers"
    shown = []
    for _ in range(4):
        clock.advance(1.0)
        assert turns.choose(jobs, clock.monotonic()) == []
        shown.append(len(turns.choose_waiting(jobs, clock.monotonic(), why=lambda _job: "")))
    assert shown == [2, 1, 0, 0]


def test_jobs_that_wait_for_bytes_have_their_turns_alike():
    clock = FakeClock()
    turns = turns_in(clock, per_second=2.0)
    jobs = running_jobs(5)
    last = dict.fromkeys(jobs, clock.monotonic())
    longest = 0.0
    for second in range(50):
        clock.advance(1.0)
        for job in jobs:
            job.is_parked = True
            job.image_phase = f"Image a: fetching {second} of 50 MB"
        turns.choose(jobs, clock.monotonic())
        for job in turns.choose_waiting(jobs, clock.monotonic(), why=lambda _job: ""):
            longest = max(longest, clock.monotonic() - last[job])
            last[job] = clock.monotonic()
    assert longest == 3.0
    assert min(last.values()) >= clock.monotonic() - 3.0


class SlowPool:
    """A pool whose threads all wait for a Girder that does not answer."""

    def __init__(self):
        self.waiting = []

    def submit(self, work, *arguments, user=""):
        del user
        self.waiting.append((work, arguments))


def test_a_girder_that_does_not_answer_keeps_few_jobs_busy(site):
    """Twenty updates a second were begun, whatever became of those before: soon no job could be cancelled in Slurm."""
    names = running(site, 100)
    slow = site.supervisor._pools["girder"] = SlowPool()
    for name in names:
        with (site.runs.path(site.state(name).token) / "output.log").open("ab") as log:
            log.write(b"more\n")
    site.run_for(120)
    assert 0 < len(slow.waiting) <= 24
    assert sum(site.job(name).is_busy for name in names) <= 24


def test_updates_go_on_when_girder_answers_again(site):
    names = running(site, 60)
    slow, pool = SlowPool(), site.supervisor._pools["girder"]
    site.supervisor._pools["girder"] = slow
    for name in names:
        with (site.runs.path(site.state(name).token) / "output.log").open("ab") as log:
            log.write(b"more\n")
    site.run_for(30)
    site.supervisor._pools["girder"] = pool
    for work, arguments in slow.waiting:
        work(*arguments)
    site.run_for(30)
    assert all("more" in site.shown(name).text for name in names)
    assert site.supervisor._updates_under_way == 0


def _seconds_until_told(jobs, others=()):
    """How long the first of these jobs waits in Slurm for a new reason until it is told."""
    clock = FakeClock()
    turns = turns_in(clock, SilentStory(), per_second=20.0)
    for job in (*jobs, *others):
        job.record.state = replace(job.state, started=None)
        job.last_flush, job.has_words = clock.monotonic(), True
    begun = clock.monotonic()
    while jobs[0] not in turns.choose([*jobs, *others], clock.monotonic()):
        clock.advance(0.25)
    return clock.monotonic() - begun


def test_a_job_is_told_within_seconds_what_it_waits_for_in_slurm_however_many_others_have():
    assert _seconds_until_told(running_jobs(1)) == 5.0
    assert _seconds_until_told(running_jobs(1), running_jobs(2000, "ada-b")) == 5.0


def test_those_of_a_user_with_many_are_told_later_most_never_need_to():
    assert _seconds_until_told(running_jobs(1000)) == 200.0


def test_a_silent_log_is_looked_at_each_second_and_opened_every_five():
    """A network mount remembers how long a file is, but each opening costs its server a question or two."""
    clock, looks = FakeClock(), []

    def has_new_output(*, anew):
        looks.append(anew)
        return False

    feed = SimpleNamespace(has_new_output=has_new_output, has_pending=False)
    turns = UpdateTurns(
        SimpleNamespace(feed=lambda _job: feed),
        clock,
        per_second=10.0,
        interval_seconds=1.0,
        status_check_seconds=600.0,
    )
    jobs = running_jobs(1)
    jobs[0].last_flush = clock.monotonic()
    clock.advance(1.0)
    for _ in range(120):
        assert turns.choose(jobs, clock.monotonic()) == []
        clock.advance(0.25)
    assert (len(looks), sum(looks)) == (30, 6)


@pytest.mark.parametrize(("number", "seconds"), [(1, 1.0), (40, 1.6), (150, 6.0), (5000, 10.0)])
def test_a_job_that_has_started_is_looked_at_soon_and_one_of_many_a_little_later(number, seconds):
    clock = FakeClock()
    turns = turns_in(clock, per_second=1e6)
    jobs = running_jobs(number)
    for job in jobs:
        job.first_log_look, job.last_flush = 0.0, clock.monotonic() - 10.0
        job.has_words = True
    begun = clock.monotonic()
    while jobs[0] not in turns.choose(jobs, clock.monotonic()):
        clock.advance(0.1)
    assert clock.monotonic() - begun == pytest.approx(seconds, abs=0.11)
