"""Whose a job is: by what Girder answers for the token of its task."""

from __future__ import annotations

import json

import pytest

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.errors import GirderUnreachable
from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.girder.server_plugin import ServerPlugin
from girder_worker_slurm.girder.users import GirderUsers
from girder_worker_slurm.job.state import GirderJob, GirderUser
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.users.mapping_file import parse_mapping
from tests.unit.slurm.fake_girder import GirderJobOfFake
from tests.unit.slurm.http_girder import Mishap, http_girder
from tests.unit.slurm.site import message_of

USER = "5f" * 12


@pytest.fixture
def girder():
    with http_girder() as girder:
        girder.owners = {"t-ada": USER, "t-nobody": None}
        girder.logins = {USER: "ada"}
        yield girder


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def users(clock):
    return GirderUsers(clock)


def asked(users, girder, **headers):
    return users.user_of(GirderJob(f"{girder.url}/job/7", "secret"), {"task_id": "t1", "headers": headers})


def test_the_token_of_the_task_says_whose_it_is(girder, users):
    assert asked(users, girder, girder_client_token="t-ada") == GirderUser(USER, "ada")
    assert girder.tokens == {"t-ada"}


def test_further_jobs_of_a_user_cost_one_call_each(girder, users, clock):
    for _ in range(3):
        asked(users, girder, girder_client_token="t-ada")
    assert girder.asked("GET", "/token/current") == 3
    assert girder.asked("GET", "/user/") == 1
    clock.advance(301)
    girder.logins[USER] = "countess"
    assert asked(users, girder, girder_client_token="t-ada").login == "countess"


def test_what_the_task_says_itself_does_not_count(girder, users):
    girder.logins["b" * 24] = "babbage"
    found = asked(
        users, girder, girder_client_token="t-ada", girder_user={"_id": "b" * 24, "login": "babbage"}
    )
    assert found.login == "ada"


def _hook(reference):
    return {"py/object": "some.Upload", "upload_kwargs": {"reference": reference}}


def test_a_token_of_somebody_else_than_the_outputs_are_for_is_nobodys(girder, users):
    other = json.dumps({"slicer_cli_web": {}, "userId": "b" * 24})
    hooks = [_hook(json.dumps({"userId": USER})), _hook(other)]
    assert asked(users, girder, girder_client_token="t-ada", girder_result_hooks=hooks) is None


@pytest.mark.parametrize(
    "reference", [json.dumps({"userId": USER}), json.dumps({"userId": None}), "not JSON", "7", None, 7, {}]
)
def test_outputs_for_the_same_user_or_for_nobody_in_particular_change_nothing(girder, users, reference):
    hooks = [_hook(reference)]
    found = asked(users, girder, girder_client_token="t-ada", girder_result_hooks=hooks)
    assert found == GirderUser(USER, "ada")


@pytest.mark.parametrize("token", ["t-nobody", "t-made-up", "", None, 7, "not\nfor a header"])
def test_a_token_of_nobody_is_no_user(girder, users, token):
    assert asked(users, girder, girder_client_token=token) is None


def test_without_a_token_nobody_is_asked(girder, users):
    assert asked(users, girder) is None
    assert girder.requests == []


def test_a_user_who_keeps_the_account_private_has_an_id_only(girder, users):
    girder.logins.clear()
    assert asked(users, girder, girder_client_token="t-ada") == GirderUser(USER, "")


@pytest.mark.parametrize("path", ["/token/current", "/user/"])
@pytest.mark.parametrize(
    "mishap", [{}, {"status": 500}, {"status": 502, "body": b"<html>"}, {"status": 200, "body": b"<html>"}]
)
def test_a_girder_that_is_away_says_nothing_about_the_user(girder, users, path, mishap):
    girder.mishaps.append(Mishap("GET", path, **mishap))
    with pytest.raises(GirderUnreachable):
        asked(users, girder, girder_client_token="t-ada")
    assert asked(users, girder, girder_client_token="t-ada") == GirderUser(USER, "ada")


def test_an_address_that_is_none_is_no_user(users):
    message = {"headers": {"girder_client_token": "t-ada"}}
    assert users.user_of(GirderJob("nonsense", "secret"), message) is None


# -- what Girder tells if it is set up to

GROUP, PRIVATE = "6a" * 12, "6b" * 12
PROFILE = {"_id": USER, "login": "ada", "email": "ada@example.org", "groups": [GROUP, PRIVATE]}


def with_profile(girder, clock, tokens, **headers):
    users = GirderUsers(clock, with_profile=True, with_group_names=True)
    message = {"task_id": "t1", "headers": {"girder_client_token": "t-ada", **headers}}
    return users, users.user_of(GirderJob(f"{girder.url}/job/7", "secret"), message, tokens)


def test_a_token_of_an_input_may_tell_e_mail_and_groups(girder, clock):
    girder.profiles, girder.groups = {"t-input": PROFILE}, {GROUP: "Pathology"}
    users, found = with_profile(girder, clock, ["t-no-scope", "t-input"])
    assert found == GirderUser(USER, "ada", "ada@example.org", {GROUP: "Pathology", PRIVATE: ""})
    assert GirderUser.from_entry(json.loads(json.dumps(found.as_entry()))) == found
    # A task without inputs of the same user, soon after.
    message = {"task_id": "t2", "headers": {"girder_client_token": "t-ada"}}
    assert users.user_of(GirderJob(f"{girder.url}/job/8", "secret"), message) == found


def test_what_a_token_of_another_user_tells_does_not_count(girder, clock):
    girder.profiles = {"t-input": {**PROFILE, "_id": "b" * 24}}
    _, found = with_profile(girder, clock, ["t-input"])
    assert found == GirderUser(USER, "ada")


def test_a_girder_that_does_not_tell_is_asked_again_for_the_next_job(girder, clock):
    users, found = with_profile(girder, clock, ["t-input"])
    assert (found.email, found.groups) == ("", {})
    girder.profiles = {"t-input": PROFILE}
    message = {"task_id": "t2", "headers": {"girder_client_token": "t-ada"}}
    again = users.user_of(GirderJob(f"{girder.url}/job/8", "secret"), message, ["t-input"])
    assert again.email == "ada@example.org"


def test_nobody_is_asked_for_what_the_mapping_does_not_need(girder, users):
    girder.profiles = {"t-input": PROFILE}
    message = {"task_id": "t1", "headers": {"girder_client_token": "t-ada"}}
    users.user_of(GirderJob(f"{girder.url}/job/7", "secret"), message, ["t-input"])
    assert girder.asked("GET", "/user/me") == 0


@pytest.mark.parametrize("path", ["/user/me", "/group/"])
def test_a_girder_that_goes_away_meanwhile_says_nothing(girder, clock, path):
    girder.profiles = {"t-input": PROFILE}
    girder.mishaps.append(Mishap("GET", path, status=502))
    with pytest.raises(GirderUnreachable):
        with_profile(girder, clock, ["t-input"])


# -- our plugin in the Girder server

TOLD = {
    "id": USER,
    "login": "ada",
    "email": "ada@example.org",
    "groups": {GROUP: "Pathology", PRIVATE: "Secret"},
}


def with_plugin(clock, **rules):
    return GirderUsers(clock, plugin=ServerPlugin(clock), **rules)


def test_the_plugin_tells_all_with_one_call_a_job(girder, clock):
    girder.plugin = {"t-ada": {"settings": {}, "user": TOLD}}
    users = with_plugin(clock, with_profile=True, with_group_names=True)
    for _ in range(3):
        found = asked(users, girder, girder_client_token="t-ada")
    assert found == GirderUser(USER, "ada", "ada@example.org", {GROUP: "Pathology", PRIVATE: "Secret"})
    assert girder.requests == [("GET", "/worker_slurm/options")] * 3


def test_what_nobody_asks_for_is_not_kept_of_what_the_plugin_tells(girder, clock):
    girder.plugin = {"t-ada": {"settings": {}, "user": TOLD}}
    assert asked(with_plugin(clock), girder, girder_client_token="t-ada") == GirderUser(USER, "ada")


def test_the_plugin_does_not_make_a_token_of_somebody_else_the_outputs_owner_s(girder, clock):
    girder.plugin = {"t-ada": {"settings": {}, "user": TOLD}}
    hooks = [_hook(json.dumps({"userId": "b" * 24}))]
    headers = {"girder_client_token": "t-ada", "girder_result_hooks": hooks}
    assert asked(with_plugin(clock, with_profile=True), girder, **headers) is None


def test_a_girder_without_the_plugin_is_asked_as_ever_and_for_the_plugin_now_and_then(girder, clock):
    users = with_plugin(clock)
    for _ in range(3):
        assert asked(users, girder, girder_client_token="t-ada") == GirderUser(USER, "ada")
    assert girder.asked("GET", "/worker_slurm/options") == 1
    assert girder.asked("GET", "/token/current") == 3
    girder.plugin = {"t-ada": {"settings": {}, "user": TOLD | {"login": "countess"}}}
    clock.advance(301)
    assert asked(users, girder, girder_client_token="t-ada").login == "countess"


@pytest.mark.parametrize(
    "answer", [{"settings": {}, "user": None}, {"settings": {}}, {"user": "ada"}, {"user": {}}]
)
def test_a_plugin_that_tells_no_user_leaves_it_to_the_rest_of_girder(girder, clock, answer):
    girder.plugin = {"t-ada": answer}
    assert asked(with_plugin(clock), girder, girder_client_token="t-ada") == GirderUser(USER, "ada")


# -- in a job


def test_the_record_says_whose_job_it_is(site):
    site.task()
    site.run_to_the_end()
    assert site.state().user == GirderUser("u1", "ada")
    assert site.girder.user_questions == 1


def test_a_job_of_nobody_runs_and_is_nobodys(site):
    site.girder.user = None
    site.task()
    site.run_to_the_end()
    assert site.state().user is None
    assert site.shown().status == JobStatus.SUCCESS


def test_a_girder_that_is_away_when_asked_for_the_user_is_asked_again(site):
    site.girder.user_silences = 2
    site.task()
    site.run_to_the_end()
    assert site.state().user == GirderUser("u1", "ada")
    assert site.shown().status == JobStatus.SUCCESS


def test_a_user_whom_the_mapping_does_not_have_hears_it_before_anything_is_done(site):
    site.users = parse_mapping("users:\n- login: grace")
    site.restart()
    site.task()
    site.run_to_the_end()
    assert site.shown().status == JobStatus.ERROR
    assert "The Girder user ada may not run jobs here" in site.shown().text
    assert site.state().verdict.code == "user_refused"
    assert site.state().user.login == "ada"
    assert "attempt" not in site.entries()
    assert site.calls("submit") == []


def test_a_user_s_options_are_those_of_the_job(site):
    site.users = parse_mapping("users:\n- login: ada\n  account: patho\n  limits: {time: 10}")
    site.restart()
    site.task(arguments=("--slurm_time", "10", "a"))
    site.task("t2", arguments=("--slurm_time", "11", "a"))
    site.run_to_the_end()
    assert site.state().options == (("account", "patho"), ("time", "10"))
    assert site.shown().status == JobStatus.SUCCESS
    assert site.state("t2").verdict.code == "option_refused"
    assert len(site.calls("submit")) == 1


def test_an_ingest_is_for_whoever_may_do_it_in_girder(site):
    site.users = parse_mapping("users: []")
    site.restart()
    site.girder.jobs["job-t1"] = GirderJobOfFake()
    message = message_of(
        "t1", task="slicer_cli_web.image_job.ingest_from_docker", name_list=[], folder_id="f", token="t"
    )
    record = Record.create(site.root.records, message, worker_id="w1", at=site.clock.now())
    site.supervisor.accept(record)
    site.run_to_the_end()
    assert site.state().verdict.code == "ingested"
