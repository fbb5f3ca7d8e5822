"""The Girder that the settings name, and its plugin."""

from __future__ import annotations

import pytest

from girder_worker_slurm.doctor.girder_server import check_girder, has_plugin, judge_version
from tests.unit.slurm.doctor.here import levels
from tests.unit.slurm.http_girder import Mishap, http_girder


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, {"release": "5.0.21"}, "ok"),
        (200, {"release": "3.2.0"}, "warn"),
        (200, None, "fail"),
        (404, {"message": "no"}, "fail"),
        (200, [], "fail"),
    ],
)
def test_only_girder_5_is_girder_as_it_should_be(status, answer, expected):
    assert levels(judge_version("http://girder/api/v1", status, answer)) == [expected]


def test_girder_is_asked_only_if_its_address_is_set():
    assert levels(check_girder("", timeout_seconds=1)) == ["ok"]
    assert levels(check_girder("http://127.0.0.1:1/api/v1", timeout_seconds=1)) == ["fail"]


def test_the_plugin_of_the_server_is_noticed_without_a_token():
    with http_girder() as girder:
        assert levels(check_girder(girder.url, timeout_seconds=5)) == ["ok"]
        girder.plugin = {}
        girder_itself, plugin = check_girder(girder.url, timeout_seconds=5)
        girder.mishaps.append(Mishap("GET", "/worker_slurm/options"))
        assert has_plugin(girder.url, timeout_seconds=5) is None
    assert (girder_itself.level.value, plugin.level.value) == ("ok", "ok")
    assert "plugin worker_slurm" in plugin.found
