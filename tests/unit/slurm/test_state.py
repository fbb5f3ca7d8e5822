"""The state of a job is the sum of its entries, whenever and however often they are added up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_slurm.job.state import (
    GirderJob,
    GirderUser,
    GrowingSet,
    JobState,
    Outcome,
    Phase,
    apply,
    fold,
)

ATTEMPT = {"event": "attempt", "number": 1, "token": "gw-1", "nonce": "n1", "log_path": "/l/1"}
STORY = [
    {"event": "accepted", "at": 5.0},
    {
        "event": "admitted",
        "kind": "container",
        "image": "i:1",
        "girder": {"url": "http://g/job/7", "token": "t"},
        "user": {"id": "u1", "login": "ada"},
    },
    ATTEMPT,
    {"event": "staged"},
    {"event": "rendered"},
    {"event": "intent"},
    {"event": "submitted", "slurm_job_id": "11", "at": 6.0},
    {"event": "started", "token": "gw-1", "slurm_job_id": "11", "node": "n"},
    {"event": "ended", "token": "gw-1", "slurm_job_id": "11", "exit_code": 0, "cause": "exit"},
    {"event": "verdict", "outcome": "success", "code": "completed", "sentence": "Good."},
    {"event": "upload", "key": "0:a", "upload_id": "u1"},
    {"event": "uploaded", "key": "0:a"},
    {"event": "hook_done", "index": 0},
    {"event": "delivered"},
    {"event": "result_sent"},
    {"event": "reported"},
    {"event": "closed"},
]
AGAIN = {"event": "again", "token": "gw-1", "code": "node_fail", "nodes": "n", "why": "lost"}
OTHER = [
    AGAIN,
    {"event": "lost"},
    {"event": "cancel", "why": "in Girder"},
    {"event": "cancel"},
    {"event": "started", "token": "gw-other", "slurm_job_id": "99"},
    {"event": "ended", "token": "gw-other", "slurm_job_id": "99", "exit_code": 0, "cause": "exit"},
    {"event": "again", "token": "gw-other", "code": "node_fail", "nodes": "n"},
    {"event": "something of a newer version", "x": 1},
    {"no event": "at all"},
]


def test_the_whole_story_ends_closed_with_everything_known():
    state = fold(STORY)
    assert state.is_final
    assert state.verdict.outcome is Outcome.SUCCESS
    assert state.girder == GirderJob("http://g/job/7", "t")
    assert state.girder.job_id == "7"
    assert state.user == GirderUser("u1", "ada")
    assert (state.accepted_at, state.submitted_at, state.slurm_job_id) == (5.0, 6.0, "11")
    assert (state.uploads, state.uploaded) == ({}, {"0:a"})
    assert state.uploaded == {"0:a"}
    assert state.hooks_done == {0}
    assert state.result_sent


def test_a_record_of_an_older_version_says_nothing_about_the_user():
    girder = {"url": "http://g/api/v1/job/7", "token": "t"}
    state = fold([{"event": "admitted", "kind": "container", "image": "i:1", "girder": girder}])
    assert state.user is None
    assert state.girder.api_url == "http://g/api/v1"


def test_who_it_is_stays_known_when_a_later_entry_does_not_say_so():
    admitted = {"event": "admitted", "kind": "container", "girder": None}
    assert fold([{**admitted, "user": {"id": "u1"}}, admitted]).user == GirderUser("u1")


@pytest.mark.parametrize(
    ("length", "phase"),
    [(1, Phase.ACCEPTED), (2, Phase.ADMITTED), (3, Phase.ADMITTED), (4, Phase.STAGED), (5, Phase.RENDERED)]
    + [(6, Phase.SUBMITTING), (7, Phase.SUBMITTED), (9, Phase.SUBMITTED), (10, Phase.DECIDED)]
    + [(14, Phase.DELIVERED), (16, Phase.REPORTED), (17, Phase.CLOSED)],
)
def test_each_entry_leads_to_its_phase(length, phase):
    assert fold(STORY[:length]).phase is phase


@given(st.lists(st.sampled_from(STORY + OTHER)), st.data())
def test_a_crash_after_any_entry_and_adding_up_again_gives_the_same_state(entries, data):
    cut = data.draw(st.integers(0, len(entries)))
    state = fold(entries[:cut])
    for entry in entries[cut:]:
        state = apply(state, entry)
    assert state == fold(entries)


@given(st.lists(st.sampled_from(STORY + OTHER)))
def test_a_verdict_is_never_lost_by_what_comes_later(entries):
    state = fold(
        [*STORY[:10], *(entry for entry in entries if entry.get("event") not in ("attempt", "lost"))]
    )
    assert state.verdict is not None
    assert state.phase >= Phase.DECIDED


@given(st.lists(st.sampled_from(STORY)), st.lists(st.sampled_from(OTHER[7:])))
def test_entries_that_are_not_known_change_nothing(entries, unknown):
    assert fold([*entries, *unknown]) == fold(entries)


@pytest.mark.parametrize("event", OTHER[4:7])
def test_events_of_another_token_are_ignored(event):
    state = fold(STORY[:7])
    assert apply(state, event) == state


def test_the_first_end_of_an_attempt_counts():
    state = fold(STORY[:9])
    assert apply(state, {**STORY[8], "exit_code": 1}).ended["exit_code"] == 0


def test_a_new_attempt_forgets_the_events_of_the_one_before_but_not_the_uploads():
    state = fold([*STORY[:9], STORY[10], {**ATTEMPT, "number": 2, "token": "gw-2", "nonce": "n2"}])
    assert (state.started, state.ended, state.slurm_job_id) == (None, None, "")
    assert (state.phase, state.attempt, state.token) == (Phase.ADMITTED, 2, "gw-2")
    assert state.uploads == {"0:a": "u1"}


@pytest.mark.parametrize("length", range(3, 10))
def test_an_attempt_that_is_over_leaves_nothing_but_its_name(length):
    state = fold([*STORY[:length], AGAIN])
    assert (state.phase, state.token, state.nonce, state.log_path) == (Phase.ADMITTED, "", "", "")
    assert (state.slurm_job_id, state.started, state.ended, state.attempt) == ("", None, None, 1)
    ((earlier),) = state.earlier
    assert (earlier.token, earlier.code, earlier.nodes, earlier.log_path) == (
        "gw-1",
        "node_fail",
        "n",
        "/l/1",
    )


def test_the_end_of_an_attempt_counts_once():
    assert fold([*STORY[:8], AGAIN, AGAIN]) == fold([*STORY[:8], AGAIN])
    second = {**ATTEMPT, "number": 2, "token": "gw-2", "nonce": "n2"}
    assert fold([*STORY[:8], AGAIN, second, AGAIN]) == fold([*STORY[:8], AGAIN, second])


def test_what_an_older_worker_recorded_of_a_failed_launch_is_understood():
    state = fold([*STORY[:7], {"event": "again", "why": "CANCELLED before the start"}])
    assert [(earlier.slurm_job_id, earlier.code) for earlier in state.earlier] == [("11", "launch_failed")]


@given(st.lists(st.sampled_from(STORY[:9] + OTHER)))
def test_events_of_an_earlier_attempt_never_touch_the_current_one(entries):
    begun = [*STORY[:8], AGAIN, {**ATTEMPT, "number": 2, "token": "gw-2", "nonce": "n2"}]
    late = [entry for entry in entries if entry.get("event") in ("started", "ended", "again")]
    assert fold([*begun, *late]) == fold(begun)


def test_a_lost_submission_may_be_submitted_again_with_the_same_token():
    state = fold([*STORY[:7], {"event": "lost"}])
    assert (state.phase, state.token, state.slurm_job_id) == (Phase.RENDERED, "gw-1", "")


def test_the_first_reason_to_cancel_is_kept():
    state = fold([{"event": "cancel", "why": "in Girder"}, {"event": "cancel", "why": "by hand"}])
    assert state.cancel == "in Girder"


def test_a_deleted_girder_job_is_the_reason_that_counts():
    state = fold([{"event": "cancel", "why": "in Girder"}, {"event": "cancel", "why": "deleted"}])
    assert state.cancel == "deleted"


def test_the_job_that_started_is_the_one_whose_id_counts():
    state = fold([*STORY[:7], {"event": "started", "token": "gw-1", "slurm_job_id": "12"}])
    assert state.slurm_job_id == "12"


def test_nothing_recorded_is_a_job_just_accepted():
    assert fold([]) == JobState()
    assert not JobState().is_in_slurm


def test_a_hundred_thousand_outputs_cost_no_more_each_than_a_thousand():
    """Each entry copied what was known of all files before it."""
    state = JobState()
    for number in range(3000):
        state = apply(state, {"event": "upload", "key": f"0:{number}", "upload_id": "u"})
        state = apply(state, {"event": "upload_at", "key": f"0:{number}", "offset": 3})
        if number < 2999:
            state = apply(state, {"event": "uploaded", "key": f"0:{number}"})
    assert len(state.uploaded) == 2999
    assert dict(state.uploads) == {"0:2999": "u"}
    assert dict(state.upload_offsets) == {"0:2999": 3}


def test_a_set_that_grows_leaves_those_before_it_as_they_were():
    empty = GrowingSet()
    one = empty.with_one_more("a")
    two, other = one.with_one_more("b"), one.with_one_more("c")
    assert (set(empty), set(one), set(two), set(other)) == (set(), {"a"}, {"a", "b"}, {"a", "c"})
    assert "c" not in two
    assert one.with_one_more("a") is one
    assert two == {"b", "a"}
    assert len(other.with_one_more("b")) == 3
