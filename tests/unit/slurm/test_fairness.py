"""Users take turns, limits hold, and what Slurm does not take yet waits without costing it anything."""

from __future__ import annotations

import json
import random
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_slurm.errors import ClusterUnreachable, SubmitDeferred, SubmitRejected
from girder_worker_slurm.job.fair_queue import FairQueue
from girder_worker_slurm.job.retries import RetryRules
from girder_worker_slurm.job.state import GirderUser, Phase
from girder_worker_slurm.testing import FakeProgram
from tests.unit.slurm.site import Site

QUEUED, RUNNING, SUCCESS, ERROR, CANCELED = 1, 2, 3, 4, 5
ENDLESS = FakeProgram(is_endless=True)


def site_of_many_users(tmp_path, **rules) -> Site:
    """A site on which the first letter of a task's name says whose it is."""
    site = Site(tmp_path, **rules)
    site.girder.user_of = lambda _job, message, *_more: GirderUser(message["task_id"][0])
    return site


def submitted(site) -> list[str]:
    """The tasks in the order of their submissions."""
    names = {
        site.state(path.name).token: path.name
        for parent in (site.root.records, site.root.ended)
        for path in parent.iterdir()
    }
    return [names[token] for token in site.calls("submit")]


# -- the queue


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers())))
def test_each_user_is_served_in_order_and_nothing_is_lost(items):
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for user, number in items:
        queue.put(user, (user, number))
    assert len(queue) == len(items)
    taken = []
    while queue:
        taken.append(queue.take())
    for user in "abc":
        assert [item for item in taken if item[0] == user] == [item for item in items if item[0] == user]
    # Nobody gets a second turn before everybody who waits had one.
    for place, (user, _) in enumerate(taken[:-1]):
        left = {other for other, _ in taken[place + 1 :]}
        assert taken[place + 1][0] != user or left == {user}


def test_a_closed_line_is_passed_over_and_keeps_its_items():
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "b1"):
        queue.put(item[0], item)
    queue.put("b", "b0", first=True)
    assert queue.take(lambda user: user != "a") == "b0"
    assert queue.take(lambda _user: False) is None
    assert [queue.take(), queue.take(), queue.take(), queue.take()] == ["a1", "b1", "a2", None]


def test_a_pick_takes_as_long_with_many_waiting_as_with_few():
    def seconds(waiting: int) -> float:
        queue: FairQueue[int] = FairQueue()
        for number in range(waiting):
            queue.put("a", number)
        begun = perf_counter()
        for _ in range(500):
            queue.take()
            queue.put("a", 0)
        return perf_counter() - begun

    assert min(seconds(100_000) for _ in range(5)) < 10 * min(seconds(100) for _ in range(5))


# -- who is asked about first


class SlowPool:
    """One thread that does one piece of work when it is told to."""

    def __init__(self):
        self.work: FairQueue[tuple] = FairQueue()

    def submit(self, work, *arguments, user=""):
        self.work.put(user, (work, arguments))

    def do_one(self) -> None:
        work, arguments = self.work.take()
        work(*arguments)


def hooks_for(user: str) -> list:
    return [{"upload_kwargs": {"reference": json.dumps({"userId": user})}}]


def test_thousands_that_girder_is_to_be_asked_about_do_not_stand_before_the_first_of_another_user(tmp_path):
    site = site_of_many_users(tmp_path)
    pool = site.supervisor._pools["girder"] = SlowPool()
    site.task("a-early", hooks=hooks_for("a"))
    site.supervisor._turn()
    pool.do_one()
    site.supervisor._turn()
    for number in range(50):
        site.task(f"a{number}", hooks=hooks_for("a"))
    site.task("b0", hooks=hooks_for("b"))
    site.supervisor._turn()
    site.cluster.step()
    site.supervisor._turn()
    for _ in range(4):
        pool.do_one()
        site.supervisor._turn()
    assert site.state("b0").phase > Phase.ACCEPTED
    # Neither do they stand before what is to be shown of their own user's job that runs.
    assert site.shown("a-early").status == RUNNING


def test_the_many_images_of_one_user_do_not_stand_before_the_first_of_another(tmp_path):
    site = site_of_many_users(tmp_path)
    pool = site.supervisor._pools["image"] = SlowPool()
    for number in range(20):
        site.task(f"a{number}", image=f"a{number}:1")
    site.run_for(1)
    site.task("b0", image="b:1")
    site.run_for(1)
    for _ in range(2):
        pool.do_one()
    assert [image for image, _ in site.images.made] == ["a0:1", "b:1"]


def test_what_a_task_says_about_its_user_counts_until_girder_is_asked(tmp_path):
    site = site_of_many_users(tmp_path)
    site.task("a0", hooks=hooks_for("b"))
    site.task("a1", hooks=[{"reference": "[" * 10**5}, {"reference": 7}])
    site.run_to_the_end()
    assert {site.state(name).user.id for name in ("a0", "a1")} == {"a"}


# -- places in Slurm


def test_a_single_job_of_one_user_overtakes_the_many_of_another(tmp_path):
    site = site_of_many_users(tmp_path, max_submitted=2)
    for number in range(60):
        site.task(f"a{number}")
    site.run_for(2)
    site.task("b0")
    site.run_to_the_end()
    assert submitted(site).index("b0") <= 3
    assert [name for name in submitted(site) if name[0] == "a"] == [f"a{number}" for number in range(60)]


def test_no_user_has_more_jobs_in_slurm_than_allowed_and_the_others_go_on(tmp_path):
    site = site_of_many_users(tmp_path, max_submitted=10, max_submitted_per_user=2)
    site.cluster.default_program = ENDLESS
    for user in "aab":
        for number in range(4):
            site.girder.jobs.get(f"job-{user}{number}") or site.task(f"{user}{number}")
    site.run_for(30, steps_slurm=True)
    assert sorted(submitted(site)) == ["a0", "a1", "b0", "b1"]
    assert site.shown("a3").status == QUEUED
    assert (
        site.shown("a3").message
        == "Waiting: 2 of your jobs are in Slurm, as many as this site allows at once"
    )
    site.cluster.default_program = FakeProgram()
    site.run_to_the_end()
    assert {job.status for job in site.girder.jobs.values()} == {SUCCESS}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            {"max_submitted_per_user": 1},
            "Waiting: 1 of your jobs is in Slurm, as many as this site allows at once",
        ),
        ({"max_submitted": 1}, "Waiting: 1 job is in Slurm, as many as this worker may have there"),
    ],
)
def test_a_limit_of_one_is_told_in_the_singular(tmp_path, limits, words):
    site = site_of_many_users(tmp_path, **limits)
    site.cluster.default_program = ENDLESS
    for number in range(2):
        site.girder.jobs.get(f"job-a{number}") or site.task(f"a{number}")
    site.run_for(30, steps_slurm=True)
    assert site.shown("a1").message == words


def test_those_whom_girder_does_not_name_are_one_user(tmp_path):
    site = Site(tmp_path, max_submitted_per_user=1)
    site.girder.user_of = lambda _job, message, *_more: (
        GirderUser("b") if message["task_id"] == "b0" else None
    )
    site.cluster.default_program = ENDLESS
    for name in ("x0", "y0", "b0"):
        site.task(name)
    site.run_for(10, steps_slurm=True)
    assert sorted(submitted(site)) == ["b0", "x0"]


def test_the_places_are_counted_after_a_restart(tmp_path):
    site = site_of_many_users(tmp_path, max_submitted=3, max_submitted_per_user=2)
    site.cluster.default_program = ENDLESS
    for number in range(5):
        site.task(f"a{number}")
    site.run_for(5, steps_slurm=True)
    site.restart()
    site.run_for(30, steps_slurm=True)
    assert len(site.calls("submit")) == 2


def test_a_cancel_of_a_waiting_job_submits_nothing(tmp_path):
    site = site_of_many_users(tmp_path, max_submitted=1)
    site.cluster.default_program = ENDLESS
    site.task("a0")
    site.task("a1")
    site.run_for(10, steps_slurm=True)
    site.revoked.add("a1")
    site.run_until((site.root.ended / "a1").exists)
    assert site.shown("a1").status == CANCELED
    assert submitted(site) == ["a0"]
    site.task("a2")
    site.cluster.default_program = FakeProgram()
    site.run_to_the_end()
    assert submitted(site) == ["a0", "a2"]


def test_a_job_that_is_run_again_does_not_wait_behind_all_others_of_its_user(tmp_path):
    site = site_of_many_users(tmp_path, max_submitted=1, retries=RetryRules())
    site.cluster.default_program = ENDLESS
    for number in range(9):
        site.task(f"a{number}")
    site.run_until(lambda: site.state("a0").started is not None)
    site.cluster.end(site.state("a0").slurm_job_id, "NODE_FAIL")
    site.cluster.default_program = FakeProgram()
    site.run_to_the_end()
    assert site.calls("submit").index(site.state("a0").token) <= 2


def test_submissions_keep_to_their_rate(tmp_path):
    site = site_of_many_users(tmp_path, submits_per_minute=6)
    for number in range(20):
        site.task(f"a{number}")
    site.run_for(60, steps_slurm=True)
    assert 6 <= len(site.calls("submit")) <= 7
    site.run_to_the_end(seconds=300)
    assert len(site.calls("submit")) == 20


# -- what Slurm does not take for now


def limit(words="QOSMaxSubmitJobPerUserLimit", *, is_for_all=False) -> SubmitDeferred:
    return SubmitDeferred(f"Slurm accepts no more jobs for now: {words}", is_for_all=is_for_all)


def test_a_submit_limit_is_waited_out_with_slurm_s_words(tmp_path):
    site = site_of_many_users(tmp_path)
    for _ in range(4):
        site.cluster.refuse_next_submit(limit())
    site.task("a0")
    site.run_for(10)
    assert (
        site.shown("a0").message == "Waiting: Slurm accepts no more jobs for now: QOSMaxSubmitJobPerUserLimit"
    )
    site.run_to_the_end()
    assert site.shown("a0").status == SUCCESS
    assert len(site.calls("submit")) == 5


@pytest.mark.parametrize(("is_for_all", "others"), [(False, ["b0"]), (True, [])])
def test_one_job_of_many_asks_again_with_growing_pauses(tmp_path, is_for_all, others):
    site = site_of_many_users(tmp_path, at_once=4)
    site.cluster.default_program = ENDLESS
    real = site.cluster.submit

    def submit(submission):
        if is_for_all or submission.token in tokens_of(site, "a"):
            site.cluster.calls.append(("submit", submission.token))
            raise limit(is_for_all=is_for_all)
        return real(submission)

    site.cluster.submit = submit
    for number in range(50):
        site.task(f"a{number}")
    site.run_for(20)
    site.task("b0")
    site.run_for(280, steps_slurm=True)
    tried = [name for name in submitted(site) if name not in others]
    assert len(tried) <= 4 + 10
    assert [name for name in submitted(site) if name == "b0"][:1] == others or is_for_all
    assert (site.state("b0").phase is Phase.SUBMITTED) is bool(others)


def tokens_of(site, user) -> set[str]:
    return {job.state.token for job in site.supervisor._jobs.values() if job.user == user}


def test_an_end_of_one_s_own_opens_the_way_at_once_and_for_all_that_wait(tmp_path):
    site = site_of_many_users(tmp_path)
    site.cluster.default_program = ENDLESS
    site.task("a0")
    site.run_until(lambda: site.state("a0").started is not None)
    for _ in range(5):
        site.cluster.refuse_next_submit(limit())
    for number in range(1, 6):
        site.task(f"a{number}")
    site.run_until(lambda: len(site.calls("submit")) == 6, seconds=200)
    before = site.clock.monotonic()
    site.cluster.default_program = FakeProgram()
    site.run_until(lambda: len(site.calls("submit")) == 11, seconds=30)
    assert site.clock.monotonic() - before < 5


def test_where_slurm_gives_each_place_back_singly_it_is_not_asked_for_all_that_wait(tmp_path):
    places = 4
    site = site_of_many_users(tmp_path, at_once=16)
    site.cluster.default_program = ENDLESS
    real = site.cluster.submit

    def submit(submission):
        if sum(not job.is_final for job in site.cluster.jobs.values()) < places:
            return real(submission)
        site.cluster.calls.append(("submit", submission.token))
        raise limit()

    site.cluster.submit = submit
    for number in range(40):
        site.task(f"a{number}")
    site.run_for(10, steps_slurm=True)
    before = len(site.calls("submit"))
    for taken in range(places, places + 10):
        site.cluster.finish(
            next(job.slurm_job_id for job in site.cluster.jobs.values() if job.state == "RUNNING")
        )
        site.run_until(lambda taken=taken: len(site.cluster.jobs) > taken, seconds=5)
        site.run_for(2, steps_slurm=True)
    assert len(site.calls("submit")) - before <= 3 * 10


def test_a_job_that_tried_and_was_refused_for_good_does_not_stop_the_others(tmp_path):
    site = site_of_many_users(tmp_path)
    for error in (limit(), SubmitRejected("Invalid account")):
        site.cluster.refuse_next_submit(error)
    for name in ("a0", "a1", "a2"):
        site.task(name)
    site.run_to_the_end()
    assert sorted(site.shown(name).status for name in ("a0", "a1", "a2")) == [SUCCESS, SUCCESS, ERROR]


def test_a_job_that_is_cancelled_while_it_tries_does_not_stop_the_others(tmp_path):
    site = site_of_many_users(tmp_path)
    site.cluster.refuse_next_submit(limit())
    site.task("a0")
    site.task("a1")
    site.run_for(1)
    site.revoked.add("a0")
    site.run_to_the_end()
    assert (site.shown("a0").status, site.shown("a1").status) == (CANCELED, SUCCESS)


def test_a_turn_costs_no_more_with_thousands_of_waiting_jobs(tmp_path):
    """Counted in looks at jobs, which no other load on the machine changes."""
    looks = []
    for waiting in (20, 200):
        (tmp_path / str(waiting)).mkdir()
        site = site_of_many_users(tmp_path / str(waiting), max_submitted=1)
        site.cluster.default_program = ENDLESS
        for number in range(waiting):
            site.task(f"a{number}")
        site.run_for(3, steps_slurm=True)
        looked = 0
        turns = site.supervisor._submits
        is_open = turns._is_open

        def counted(key, is_open=is_open):
            nonlocal looked
            looked += 1
            return is_open(key)

        turns._is_open = counted
        for _ in range(50):
            site.supervisor._turn(looks=False)
        looks.append(looked)
    assert looks[0] == looks[1]


def test_a_quiet_time_saves_up_no_submissions(tmp_path):
    site = site_of_many_users(tmp_path, submits_per_minute=60)
    site.run_for(300)
    for number in range(20):
        site.task(f"a{number}")
    site.run_for(5)
    assert len(site.calls("submit")) <= 7


# -- everything at once


def befall(site: Site, chance: random.Random, tasks: int) -> None:
    """One of the things that happen to a site."""
    cluster, waiting = site.cluster, list(site.supervisor._jobs)
    in_slurm = [job.slurm_job_id for job in cluster.jobs.values() if not job.is_final]
    ends = ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "TIMEOUT", "CANCELLED", "PENDING"]
    misfortunes = [
        lambda: tasks < 20 and site.task(f"{chance.choice('abc')}{tasks}"),
        lambda: tasks < 20 and site.task(f"a{tasks}"),
        lambda: cluster.refuse_next_submit(limit(is_for_all=chance.random() < 0.3)),
        lambda: cluster.refuse_next_submit(SubmitRejected("Invalid account")),
        lambda: cluster.refuse_next_submit(ClusterUnreachable("no sbatch")),
        lambda: cluster.lose_answer_of_next_submit(is_taken=chance.random() < 0.5),
        lambda: waiting and site.revoked.add(chance.choice(waiting)),
        lambda: in_slurm and cluster.end(chance.choice(in_slurm), chance.choice(ends)),
        lambda: in_slurm and cluster.forget(chance.choice(in_slurm)),
        site.restart,
    ]
    chance.choice(misfortunes)()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_befalls_the_places_are_counted_right_and_nobody_waits_for_ever(tmp_path, seed):
    chance = random.Random(seed)  # noqa: S311 - no secret, the same each time
    limits = {"max_submitted": chance.choice([1, 3]), "max_submitted_per_user": seed % 3, "at_once": 4}
    site = site_of_many_users(tmp_path, retries=RetryRules(2, 3), **limits)
    for _ in range(80):
        befall(site, chance, len(site.girder.jobs))
        site.run_for(chance.choice([0.25, 1, 3]), steps_slurm=chance.random() < 0.5)
        turns = site.supervisor._submits
        placed = {job for jobs in turns._places.values() for job in jobs}
        in_slurm = [job for job in site.supervisor._jobs.values() if job.state.is_in_slurm]
        assert turns._taken == len(placed) <= max(limits["max_submitted"], len(in_slurm))
        assert placed >= set(in_slurm)
    site.cluster._mishaps.clear()
    site.run_to_the_end(seconds=3000)
    turns = site.supervisor._submits
    assert turns._taken == 0
    assert not turns._places
    assert not turns._waiting
    assert {job.status for job in site.girder.jobs.values()} <= {SUCCESS, ERROR, CANCELED}
    site.task("d0")
    site.run_to_the_end(seconds=100)
    assert site.shown("d0").status == SUCCESS
