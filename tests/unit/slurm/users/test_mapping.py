"""Who may do what: the rules for a user's job, from the entries that fit."""

from __future__ import annotations

import pytest

from girder_worker_singularity.run.docker_options import ResourceWishes
from girder_worker_slurm.errors import OptionRefused, UserRefused
from girder_worker_slurm.job.job_request import job_request
from girder_worker_slurm.job.state import GirderUser
from girder_worker_slurm.options.limits import parse_limits
from girder_worker_slurm.options.requests import OptionRules, parse_allowed, parse_profile
from girder_worker_slurm.users.mapping import UserMapping
from girder_worker_slurm.users.mapping_file import parse_mapping

ADA = GirderUser("5f01", "ada", "ada@example.org", {"6a": "Pathology", "6b": "Students"})
BOB = GirderUser("5f02", "bob", "bob@example.org", {})
SITE = OptionRules(
    site=(("partition", "normal"), ("account", "common"), ("time", "10")),
    profiles=(parse_profile("*", "qos = low"),),
    limits=parse_limits({"time": "60", "mem": "8G"}),
)


def rules(text: str, user: GirderUser | None = ADA, unmapped="refuse") -> OptionRules:
    return parse_mapping(text, unmapped).rules_for(user, SITE)


def chosen(asked: OptionRules, *arguments, gpus: int = 0, gpu_options=None):
    request = job_request(asked, image="i:1", cli="C", labels={}, parameters={}, arguments=arguments)
    return request.chosen(ResourceWishes(gpus=gpus), gpu_options=gpu_options).options


def values(*what, **how):
    return {option.name: option.value for option in chosen(*what, **how)}


def test_without_a_mapping_all_are_alike():
    assert UserMapping().rules_for(None, SITE) is SITE
    assert UserMapping().rules_for(ADA, SITE) is SITE


def test_a_user_s_options_win_over_the_site_s_and_say_where_they_come_from():
    asked = rules(
        "users:\n- login: ada\n  account: patho\n  qos: high\n  partition: long\n  options: {nice: 5}"
    )
    wanted = {"partition": "long", "account": "patho", "time": "10", "qos": "high", "nice": "5"}
    assert values(asked) == wanted
    origins = {option.name: option.origin for option in chosen(asked)}
    assert origins.pop("time") == "[slurm.options]"
    assert set(origins.values()) == {"The mapping of users, login ada"}
    replaced = next(option for option in chosen(asked) if option.name == "qos").instead_of
    assert replaced == (("qos", "low", "[slurm.profiles] *"),)


@pytest.mark.parametrize(
    "entry",
    [
        "login: ADA",
        "login: [eve, ada]",
        "email: Ada@Example.org",
        "group: pathology",
        "group_id: 6a",
        "id: 5f01",
    ],
)
def test_a_user_is_found_by_each_key(entry):
    assert values(rules(f"users:\n- {entry}\n  account: patho"))["account"] == "patho"
    with pytest.raises(UserRefused, match="user bob may not run jobs here"):
        rules(f"users:\n- {entry}\n  account: patho", BOB)


def test_later_entries_win_key_by_key():
    text = """
users:
- group: Pathology
  account: patho
  limits: {time: 1-0, gpus: 2}
  allow_options: [mem, time]
- group: Students
  limits: {time: 30}
- login: ada
  qos: high
"""
    asked = rules(text)
    assert (values(asked)["account"], values(asked)["qos"]) == ("patho", "high")
    assert asked.limits == parse_limits({"time": "30", "mem": "8G", "gpus": "2"})
    assert asked.allowed == parse_allowed(["mem", "time"])


def test_limits_and_allowed_options_hold_for_the_group_alone():
    text = (
        "users:\n- group: Students\n  limits: {time: 30}\n  allow_options: [time]\n- login: bob\n  account: b"
    )
    with pytest.raises(OptionRefused, match="40 minutes, more than the 30"):
        values(rules(text), ("time", "40"))
    with pytest.raises(OptionRefused, match="`mem` may not be chosen here; allowed are time"):
        values(rules(text), ("mem", "1G"))
    assert values(rules(text, BOB), ("time", "40"), ("mem", "1G"))["time"] == "40"


def test_the_account_counts_for_jobs_with_gpus_and_the_partition_is_theirs():
    asked = rules("users:\n- login: ada\n  account: patho\n  partition: long\n  qos: high")
    gpu_options = {"gres": "gpu:{gpus}", "partition": "gpu", "account": "gpus", "qos": "gpu"}
    found = values(asked, gpus=1, gpu_options=gpu_options)
    assert (found["account"], found["partition"], found["qos"]) == ("patho", "gpu", "gpu")


def test_a_user_whom_the_mapping_does_not_have_is_treated_as_the_site_says():
    text = "users:\n- login: ada\n  account: patho"
    for user in (BOB, None):
        with pytest.raises(UserRefused):
            rules(text, user)
        assert rules(text, user, "default") == SITE


def test_a_mapping_of_nobody_refuses_everybody():
    with pytest.raises(UserRefused):
        rules("users: []")


@pytest.mark.parametrize("key", ["email: ada@example.org", "group: Students", "group_id: 6b"])
def test_who_is_not_told_is_never_let_pass_by_another_entry(key):
    # Or else a limit of a group would not hold for a task that Girder says little about.
    text = f"users:\n- {key}\n  limits: {{time: 10}}\n- login: ada\n  account: patho"
    with pytest.raises(UserRefused, match=r"does not tell the e-mail address and the groups of its user ada"):
        rules(text, GirderUser("5f01", "ada"))
    assert values(rules(text))["account"] == "patho"


def test_a_group_without_a_name_may_be_any():
    nameless = GirderUser("5f01", "ada", "ada@example.org", {"6c": ""})
    with pytest.raises(UserRefused, match="names of all groups of its user ada"):
        rules("users:\n- group: Students\n- login: ada", nameless)
    rules("users:\n- group_id: 6d\n- login: ada", nameless)


def test_a_login_that_is_not_told_is_nobody_s():
    with pytest.raises(UserRefused, match="Girder user 5f09"):
        rules("users:\n- login: ada", GirderUser("5f09", ""))


def test_a_group_cannot_pass_for_an_id_by_its_name():
    impostor = GirderUser("5f03", "eve", "eve@example.org", {"6f": "6a"})
    with pytest.raises(UserRefused):
        rules("users:\n- group_id: 6a\n- group: Pathology", impostor)


def test_the_file_of_the_jarvice_document_is_read_as_it_is():
    text = """
users_id_mapping:
  - user: Benoit Leveugle
    jarvice_user: bleveugleb
    mail: benoit.leveugle@eviden.net
    mapped_user: kirby
    ssh_private_key_b64: "XXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"
"""
    mapping = parse_mapping(text)
    assert mapping.unix_users == ("kirby",)
    benoit = GirderUser("1", "anything", "Benoit.Leveugle@eviden.net")
    assert mapping.unix_user_of(benoit) == "kirby"
    assert mapping.rules_for(benoit, SITE) == SITE
    for other in (GirderUser("2", "bleveugleb", "b@example.org"), GirderUser("3", "bleveugleb"), None):
        with pytest.raises(UserRefused):
            mapping.rules_for(other, SITE)


def test_the_unix_user_is_that_of_the_last_entry_that_fits_and_names_one():
    mapping = parse_mapping(
        "users:\n- login: [ada, bob]\n  unix_user: lab\n- login: ada\n  unix_user: ada_l\n- login: ada\n  qos: high\n- login: eve"
    )
    assert mapping.unix_users == ("lab", "ada_l")
    who = {name: mapping.unix_user_of(GirderUser(name, name)) for name in ("ada", "bob", "eve", "mallory")}
    assert who == {"ada": "ada_l", "bob": "lab", "eve": "", "mallory": ""}
    assert mapping.unix_user_of(None) == ""


def test_the_unix_user_of_a_group_is_nobodys_of_whom_girder_does_not_tell_the_groups():
    mapping = parse_mapping("users:\n- login: ada\n  unix_user: kirby\n- group_id: 6a")
    assert mapping.unix_user_of(GirderUser("1", "ada")) == ""
