"""What the worker asks our plugin in the Girder server, how often, and what it makes of the answers."""

from __future__ import annotations

import pytest
import requests

from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.errors import GirderUnreachable
from girder_worker_slurm.girder.server_plugin import ServerPlugin
from girder_worker_slurm.job.state import GirderJob, Phase
from tests.unit.slurm.http_girder import Mishap, http_girder
from tests.unit.slurm.site import Site

SETTINGS = {"mem": 16000, "partition": "long"}
PATH = "/worker_slurm/options"


@pytest.fixture
def girder():
    with http_girder() as girder:
        girder.plugin = {"t-job": {"settings": dict(SETTINGS), "user": None}}
        yield girder


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def plugin(clock):
    return ServerPlugin(clock)


def settings_of(plugin, girder, token="t-job"):  # noqa: S107 - of a pretended Girder
    return plugin.settings(GirderJob(f"{girder.url}/job/7", token))


def test_jobs_in_hundreds_cost_one_call_a_minute(girder, plugin, clock):
    for _ in range(100):
        assert settings_of(plugin, girder) == SETTINGS
    assert girder.asked("GET", PATH) == 1
    girder.plugin["t-job"]["settings"] = {"mem": "1G"}
    clock.advance(59)
    assert settings_of(plugin, girder) == SETTINGS
    clock.advance(2)
    assert settings_of(plugin, girder) == {"mem": "1G"}


def test_the_question_for_a_user_brings_the_settings_along(girder, plugin):
    girder.plugin["t-ada"] = {"settings": SETTINGS, "user": {"id": "5f", "login": "ada"}}
    plugin.owner(girder.url, "t-ada")
    assert settings_of(plugin, girder) == SETTINGS
    assert girder.asked("GET", PATH) == 1


def test_a_girder_without_the_plugin_has_no_settings_and_is_asked_rarely(girder, plugin, clock):
    girder.plugin = None
    for _ in range(3):
        assert settings_of(plugin, girder) == {}
        clock.advance(99)
    assert girder.asked("GET", PATH) == 1
    girder.plugin = {"t-job": {"settings": SETTINGS}}
    clock.advance(99)
    assert settings_of(plugin, girder) == SETTINGS


def test_a_plugin_that_was_removed_is_noticed(girder, plugin, clock):
    settings_of(plugin, girder)
    girder.plugin = None
    clock.advance(61)
    assert settings_of(plugin, girder) == {}


@pytest.mark.parametrize(
    "mishap",
    [
        {},
        {"status": 500},
        {"status": 502, "body": b"<html>"},
        {"status": 200, "body": b"<html>"},
        {"status": 200, "body": b"[]"},
        {"status": 404, "body": b"<html>the page of a proxy"},
    ],
)
def test_a_girder_that_is_away_says_nothing_about_its_settings(girder, plugin, clock, mishap):
    settings_of(plugin, girder)
    clock.advance(61)
    girder.mishaps.append(Mishap("GET", PATH, **mishap))
    with pytest.raises(GirderUnreachable):
        settings_of(plugin, girder)
    assert settings_of(plugin, girder) == SETTINGS


def test_a_token_that_is_not_taken_any_more_gets_what_was_told_last(girder, plugin, clock):
    assert settings_of(plugin, girder, "expired") == {}
    settings_of(plugin, girder)
    clock.advance(61)
    assert settings_of(plugin, girder, "expired") == SETTINGS
    assert settings_of(plugin, girder, "not\nfor a header") == SETTINGS


@pytest.mark.parametrize("answer", [{}, {"settings": None}, {"settings": ["mem"]}])
def test_an_answer_without_settings_is_no_setting(girder, plugin, answer):
    girder.plugin["t-job"] = answer
    assert settings_of(plugin, girder) == {}


def test_two_girders_have_settings_of_their_own(girder, plugin):
    with http_girder() as other:
        other.plugin = {"t-job": {"settings": {"mem": "1G"}}}
        assert (settings_of(plugin, girder), settings_of(plugin, other)) == (SETTINGS, {"mem": "1G"})


def test_threads_that_wait_for_one_answer_of_girder_do_not_each_wait_for_one_of_their_own():
    """Four threads that also cancel in Slurm: each waited a minute, one after the other."""
    asked = []

    class Hanging:
        def request(self, _method, url, **_how):
            asked.append(url)
            clock.advance(60.0)
            raise requests.ReadTimeout

    clock = FakeClock()
    plugin = ServerPlugin(clock, Hanging())
    job = GirderJob("http://girder/api/v1/job/1", "secret")
    for _ in range(4):
        with pytest.raises(GirderUnreachable):
            plugin.settings(job)
    assert len(asked) == 1
    clock.advance(61.0)
    with pytest.raises(GirderUnreachable):
        plugin.settings(job)
    assert len(asked) == 2


# -- in a job


def test_a_job_is_submitted_with_them_and_says_what_is_passed_over(tmp_path):
    site = Site(tmp_path)
    site.girder.settings = {"mem": "4G", "account": "lab"}
    site.task()
    site.run_until(site.is_in(Phase.SUBMITTED))
    assert site.state().options == (("mem", "4G"),)
    assert "Girder settings, worker_slurm.account: " in site.shown().text


def test_a_job_waits_for_a_girder_that_is_away_and_gets_its_settings_then(tmp_path):
    site = Site(tmp_path)
    site.girder.settings = GirderUnreachable("Girder is being restarted")
    site.task()
    site.run_for(30)
    assert site.state().phase is Phase.STAGED
    site.girder.settings = {"mem": "4G"}
    site.run_until(site.is_in(Phase.SUBMITTED))
    assert site.state().options == (("mem", "4G"),)
