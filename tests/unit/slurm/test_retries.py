"""Jobs that the infrastructure ended: run again elsewhere, within their budget, and the attempt before reaches nothing."""

from __future__ import annotations

import json

import pytest

from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.errors import SubmitRejected
from girder_worker_slurm.girder.log_feed import LogFeed
from girder_worker_slurm.job.retries import (
    RetryRules,
    avoided_nodes,
    is_tried_again,
    options_avoiding,
    retry_sentence,
    with_earlier,
)
from girder_worker_slurm.job.state import EarlierAttempt, GirderUser, JobState, Outcome, Verdict
from girder_worker_slurm.testing import FakeProgram
from girder_worker_slurm.users.mapping_file import parse_mapping
from tests.unit.slurm.site import Site, WorkerDied

RUNNING, SUCCESS, ERROR, CANCELED = 2, 3, 4, 5
NODE_FAIL = Verdict(Outcome.ERROR, "node_fail", "Slurm job 7 was lost.", "n1")


def tried(*codes: str, nodes: str = "n1") -> JobState:
    earlier = tuple(EarlierAttempt(f"t{n}", str(n + 1), code, nodes) for n, code in enumerate(codes))
    return JobState(earlier=earlier)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, retries=RetryRules(infrastructure=2, preemption=3))


# -- the decision


@pytest.mark.parametrize("code", ["node_fail", "boot_fail", "launch_failed", "requeued"])
def test_infrastructure_failures_are_tried_again_as_often_as_the_budget_says(code):
    verdict = Verdict(Outcome.ERROR, code, "")
    rules = RetryRules(infrastructure=2)
    assert [is_tried_again(tried(*["node_fail"] * n), verdict, rules) for n in range(4)] == [1, 1, 0, 0]


def test_preemption_has_a_budget_of_its_own():
    preempted, rules = Verdict(Outcome.ERROR, "preempted", ""), RetryRules(infrastructure=1, preemption=2)
    assert is_tried_again(tried("node_fail", "preempted"), preempted, rules)
    assert not is_tried_again(tried("preempted", "preempted"), preempted, rules)
    assert is_tried_again(tried("preempted", "preempted"), NODE_FAIL, rules)
    assert not is_tried_again(tried("node_fail"), NODE_FAIL, rules)


@pytest.mark.parametrize(
    "code",
    [
        "failed",
        "out_of_memory",
        "timeout",
        "cancelled_in_slurm",
        "vanished",
        "deadline",
        "held",
        "prerun_failed",
    ]
    + ["script_failed", "no_result", "ended_by_signal", "completed", "revoked", "not_kept"],
)
def test_what_may_be_the_job_s_own_doing_is_never_tried_again(code):
    assert not is_tried_again(JobState(), Verdict(Outcome.ERROR, code, ""), RetryRules(9, 9))


def test_neither_a_cancelled_job_nor_one_on_the_worker_s_own_host_is_tried_again():
    assert not is_tried_again(JobState(cancel="in Girder"), NODE_FAIL, RetryRules())
    assert not is_tried_again(JobState(cluster="direct"), NODE_FAIL, RetryRules())


def test_the_last_verdict_names_all_attempts():
    sentence = with_earlier(tried("node_fail", "preempted"), NODE_FAIL).sentence
    assert sentence == (
        "Slurm job 7 was lost. That was try 3. Before it: Slurm job 1 was lost because its node failed on n1;"
        " Slurm job 2 was preempted by a job of higher priority on n1."
    )
    failed = Verdict(Outcome.ERROR, "failed", "The analysis ended with exit code 3.")
    assert with_earlier(tried("node_fail"), failed) == failed


def test_only_nodes_that_failed_are_avoided_and_each_is_named_once():
    assert avoided_nodes(tried("node_fail", "preempted", "requeued")) == ("n1",)
    assert avoided_nodes(tried("node_fail", "launch_failed", nodes="gs[1-2]")) == ("gs[1-2]",)
    assert avoided_nodes(tried("launch_failed", nodes="")) == ()
    assert "not on n1" in retry_sentence(tried("node_fail"))
    assert "not on" not in retry_sentence(tried("preempted"))


@pytest.mark.parametrize(
    ("options", "head", "expected"),
    [
        ((("mem", "1G"),), {}, (("mem", "1G"), ("exclude", "n1,n2"))),
        ((("exclude", "bad[1-3]"), ("mem", "1G")), {}, (("mem", "1G"), ("exclude", "bad[1-3],n1,n2"))),
        ((("x", "bad1"),), {}, (("exclude", "bad1,n1,n2"),)),
        ((), {"exclude": "bad9"}, (("exclude", "bad9,n1,n2"),)),
        ((("nodelist", "n1"),), {}, (("nodelist", "n1"),)),
        ((), {"nodelist": "n1"}, ()),
    ],
)
def test_nodes_are_excluded_besides_the_site_s_own(options, head, expected):
    assert options_avoiding(options, ("n1", "n2"), head) == expected


def test_without_nodes_to_avoid_the_options_stay():
    assert options_avoiding((("exclude", "n9"),), (), {}) == (("exclude", "n9"),)


# -- a job's way


def begin(site, *, output: bytes = b"") -> JobState:
    """A job whose first attempt runs; the next ones will end well."""
    site.cluster.default_program = FakeProgram(output=output, is_endless=True)
    site.task()
    return begun(site, 1)


def begun(site, attempt: int) -> JobState:
    site.run_until(lambda: site.state().attempt == attempt and site.state().started is not None)
    return site.state()


def fail(site, how="NODE_FAIL", **fields) -> bool:
    """Ends what is in the pretended queue as the infrastructure does; False while there is nothing."""
    waiting = [job_id for job_id, job in site.cluster.jobs.items() if not job.is_final]
    for job_id in waiting:
        site.cluster.end(job_id, how, **fields)
    site.cluster.default_program = FakeProgram()
    return bool(waiting)


def fail_each_time(site, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        if attempt > 1:
            begun(site, attempt)
        fail(site)
        site.cluster.default_program = FakeProgram(is_endless=True)


def test_a_job_whose_node_failed_runs_again_elsewhere_and_brings_its_outputs_once(site):
    first = begin(site)
    fail(site)
    site.run_to_the_end()
    second = site.state()
    assert site.shown().status == SUCCESS
    assert site.shown().statuses == [2, 3]
    assert (second.attempt, [earlier.slurm_job_id for earlier in second.earlier]) == (2, [first.slurm_job_id])
    assert second.token != first.token
    assert second.nonce != first.nonce
    again = next(job for job in site.cluster.jobs.values() if job.token == second.token)
    assert dict(again.submission.options)["exclude"] == "fake1"
    assert (
        "Try 1: Slurm job 101 was lost because its node failed on fake1. It is submitted anew"
        in site.shown().text
    )
    assert [event for event in site.entries() if event in ("verdict", "delivered", "reported")] == [
        "verdict", "delivered", "reported",
    ]  # fmt: skip
    assert [what for what, *_ in site.results.sent] == ["success"]


def test_the_inputs_are_staged_into_a_volume_of_the_new_attempt_s_own(site):
    first = site.runs.path(begin(site).token)
    fail_each_time(site, 1)
    second = site.runs.path(begun(site, 2).token)
    assert not (first / "volume").exists()
    assert not (first / "nonce").exists()
    assert (second / "volume").stat().st_nlink == 2
    assert (first / "claim").exists()


@pytest.mark.fault("node down (slurmd killed)", phases=("running",))
def test_a_first_attempt_that_is_still_alive_reaches_nothing(site):
    first = begin(site)
    fail_each_time(site, 1)
    begun(site, 2)
    # Its node returns, and there it ends well: the event, and more log.
    site.cluster.programs[first.token] = FakeProgram(output=b"from the first attempt\n")
    site.cluster.finish(first.slurm_job_id)
    site.run_for(60)
    assert site.state().ended is None
    assert site.shown().status == 2
    assert "from the first attempt" not in site.shown().text
    site.cluster.default_program = FakeProgram(exit_code=3)
    site.run_to_the_end()
    assert site.shown().status == ERROR
    assert "ended with exit code 3" in site.shown().text


def test_an_earlier_attempt_that_shows_up_in_the_queue_is_cancelled(site):
    first = begin(site).slurm_job_id
    fail_each_time(site, 1)
    begun(site, 2)
    site.cluster.end(first, "RUNNING")
    site.run_for(60)
    assert site.cluster.jobs[first].is_final
    assert not site.cluster.jobs[site.state().slurm_job_id].is_final


def test_what_the_first_attempt_printed_is_shown_before_the_second(site):
    begin(site)
    (site.runs.path(site.state().token) / "output.log").write_bytes(b"of the first\n" * 3)
    fail(site)
    site.cluster.default_program = FakeProgram(output=b"2nd\n")
    site.run_to_the_end()
    text = site.shown().text
    assert text.index("of the first") < text.index("Try 1:") < text.index("2nd\n")
    assert (text.count("of the first"), text.count("2nd\n")) == (3, 1)


def test_after_the_last_try_the_verdict_names_all_of_them(site):
    begin(site)
    fail_each_time(site, 3)
    site.run_to_the_end()
    assert site.state().verdict.code == "node_fail"
    assert "That was try 3" in site.state().verdict.sentence
    for slurm_job_id in ("101", "102", "103"):
        assert f"Slurm job {slurm_job_id}" in site.state().verdict.sentence
    assert len(site.calls("submit")) == 3


def test_preempted_jobs_may_come_back_to_the_same_node(site):
    begin(site)
    fail(site, "PREEMPTED")
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert all("exclude" not in dict(job.submission.options) for job in site.cluster.jobs.values())


def test_without_any_other_node_the_job_is_submitted_for_all_of_them(site):
    begin(site)
    site.cluster.refuse_next_submit(SubmitRejected("Requested node configuration is not available"))
    fail(site)
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert "Slurm does not take it without fake1" in site.shown().text
    again = next(job for job in site.cluster.jobs.values() if job.token == site.state().token)
    assert "exclude" not in dict(again.submission.options)


def test_a_refusal_that_has_nothing_to_do_with_the_nodes_ends_the_job(site):
    begin(site)
    for _ in range(2):
        site.cluster.refuse_next_submit(SubmitRejected("Invalid account"))
    fail(site)
    site.run_to_the_end()
    assert site.state().verdict.code == "submit_rejected"


def test_a_job_that_slurm_holds_after_a_failed_launch_is_submitted_anew(site):
    site.task()
    site.run_until(lambda: site.entries()[-1] == "submitted", steps_slurm=False)
    held = site.state().slurm_job_id
    site.cluster.end(held, "PENDING", reason="launch failed requeued held")
    site.cluster.jobs[held].is_held = True
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.cluster.jobs[held].state == "CANCELLED"
    assert site.state().earlier[0].code == "launch_failed"


def test_a_job_that_slurm_put_back_runs_anew_and_its_old_place_is_given_up(site):
    begin(site)
    old = site.cluster.jobs[site.state().slurm_job_id]
    old.state, old.restarts, old.has_run, old.is_held = "PENDING", 1, False, True
    site.cluster.default_program = FakeProgram()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert old.state == "CANCELLED"
    assert "was put back into the queue while it ran" in site.shown().text
    assert sum(job.has_run for job in site.cluster.jobs.values()) == 1


def test_a_job_that_girder_had_is_not_given_up_when_its_token_has_expired_by_the_second_attempt(site):
    begin(site)
    fail(site)
    site.girder.refuses_access = True
    site.restart()
    site.run_to_the_end()
    assert site.state().attempt == 2
    assert site.state().verdict.outcome is Outcome.SUCCESS
    assert site.state().is_untold


def test_a_cancel_between_two_attempts_submits_nothing_more(site):
    begin(site)
    site.one_step_a_turn = True
    fail(site)
    site.run_until(lambda: "again" in site.entries(), steps_slurm=False)
    site.revoked.add("t1")
    site.run_to_the_end()
    assert site.shown().status == CANCELED
    assert len(site.calls("submit")) == 1


@pytest.mark.parametrize("how", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "CANCELLED", "held", "requeued"])
@pytest.mark.parametrize("is_before", [False, True])
@pytest.mark.parametrize("at", range(5, 18))
@pytest.mark.fault("worker killed while a node fails", phases=("running",))
def test_a_worker_may_die_anywhere_around_a_failure(site, how, at, is_before):
    site.death.at_entry, site.death.is_before = at, is_before
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    has_failed = False
    for _ in range(4000):
        try:
            site.turn()
        except WorkerDied:
            site.restart()
        if has_failed:
            site.cluster.step()
        elif how == "held":
            has_failed = fail(site, "PENDING", reason="launch failed requeued held")
            for job in site.cluster.jobs.values():
                job.is_held = True
        elif how in ("CANCELLED", "BOOT_FAIL"):  # before it could start
            has_failed = fail(site, how)
        else:
            site.cluster.step()
            running = [job for job in site.cluster.jobs.values() if job.has_run]
            if running and how == "requeued":
                running[0].state, running[0].restarts, running[0].is_held = "PENDING", 1, True
                running[0].has_run = False
            elif running:
                fail(site, how)
                running[0].has_run = False
            has_failed = bool(running)
            if has_failed:
                site.cluster.default_program = FakeProgram()
        if site.supervisor.live_count == 0:
            break
    assert has_failed
    assert site.shown().status == SUCCESS, site.entries()
    assert site.shown().statuses == [2, 3]
    assert site.shown().text.count("Try 1:") == 1
    assert (site.entries().count("again"), site.entries().count("delivered")) == (1, 1)
    assert sum(job.has_run for job in site.cluster.jobs.values()) == 1
    assert {what for what, *_ in site.results.sent} == {"success"}
    assert all(job.is_final for job in site.cluster.jobs.values()), site.cluster.jobs


def test_the_token_of_an_attempt_that_is_over_is_forgotten(site):
    begin(site)
    fail(site)
    site.run_to_the_end()
    assert site.supervisor._events._by_token == {}


# -- the log of several attempts


def test_a_feed_reads_the_output_of_each_attempt_from_its_beginning(tmp_path):
    first, second = tmp_path / "1.log", tmp_path / "2.log"
    first.write_text("one\n")
    second.write_text("two and more\n")
    feed = LogFeed(tmp_path, first, RunDirectories(tmp_path), limit_bytes=10_000)
    feed.read(final=True)
    feed.note_try(1, "Try 1 is over.")
    feed = LogFeed(tmp_path, second, RunDirectories(tmp_path), limit_bytes=10_000)  # a restart
    feed.note_try(1, "Try 1 is over.")
    feed.read(final=True)
    assert (tmp_path / "girder.log").read_text() == "one\nTry 1 is over.\ntwo and more\n"


def test_a_log_of_an_older_worker_goes_on_where_it_was(tmp_path):
    output = tmp_path / "1.log"
    output.write_text("one\ntwo\n")
    (tmp_path / "girder.log").write_text("one\n")
    (tmp_path / "log.json").write_text(json.dumps({"read": 4, "written": 4, "sent": 4, "sending": 4}))
    feed = LogFeed(tmp_path, output, RunDirectories(tmp_path), limit_bytes=10_000)
    feed.read(final=True)
    assert (tmp_path / "girder.log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("is_forgotten", [False, True])
@pytest.mark.parametrize(("code", "status"), [(0, SUCCESS), (3, ERROR)])
def test_a_job_that_is_lost_in_the_lines_after_its_container_ends_as_that_did(
    site, code, status, is_forgotten
):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    (job,) = site.slurm_jobs()
    words = {"exit_code": code, "signal": 0, "cause": "exit", "log_bytes": 0, "seconds": 1}
    site.cluster._event(job, "finished", **words)
    site.run_for(5)
    assert site.shown().status == RUNNING
    site.cluster.end(job.slurm_job_id, "NODE_FAIL")
    if is_forgotten:
        site.cluster.forget(job.slurm_job_id)
    site.run_to_the_end(steps_slurm=False)
    assert site.shown().status == status
    assert site.state().verdict.code == ("completed" if code == 0 else "failed")
    assert len(site.calls("submit")) == 1


def test_a_mapping_that_came_meanwhile_asks_for_what_it_needs_to_know_of_the_user(site):
    site.cluster.default_program = FakeProgram(is_endless=True)
    site.task()
    site.run_until(lambda: site.state().started is not None)
    assert site.state().user.email == ""
    site.users = parse_mapping("users:\n- group: Lab\n  account: lab\n")
    site.girder.user = GirderUser("u1", "ada", "ada@example.org", {"7" * 24: "Lab"})
    site.restart()
    (job,) = site.slurm_jobs()
    site.cluster.default_program = FakeProgram()
    site.cluster.end(job.slurm_job_id, "NODE_FAIL")
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert dict(site.state().options)["account"] == "lab"
    assert site.girder.user_questions == 2


def test_a_mapping_that_is_told_too_little_asks_once(site):
    site.users = parse_mapping("users:\n- group: Lab\n  account: lab\n", "default")
    site.task()
    site.run_to_the_end()
    assert site.shown().status == SUCCESS
    assert site.girder.user_questions == 1
