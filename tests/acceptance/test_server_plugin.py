"""Girder's settings for Slurm, and whose a job is, from the optional plugin inside a real Girder server."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import requests

from tests.acceptance.test_options import _push
from tests.support.girder_site import ERROR
from tests.support.plugin_girder import girder_with_plugin, set_setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Site
    from tests.support.girder_site import GirderSite

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

FROM_ENVIRONMENT = {"account": "nobodys"}
MAPPING = """\
users:
- group: {group}
  limits: {{mem: 300M}}
"""


@pytest.fixture(scope="module")
def girder(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GirderSite]:
    directory = tmp_path_factory.mktemp("girder")
    with girder_with_plugin(
        shared_site.stack, directory, GIRDER_SETTING_WORKER_SLURM_ACCOUNT="nobodys"
    ) as girder:
        yield girder


def _asked(girder: GirderSite, token: str | None) -> tuple[int, dict[str, object]]:
    headers = {"Girder-Token": token} if token is not None else {}
    answer = requests.get(f"{girder.api}/worker_slurm/options", headers=headers, timeout=30)
    return answer.status_code, answer.json()


def test_only_an_administrator_sets_and_only_what_can_be_meant(girder: GirderSite) -> None:
    person = girder.new_user(f"user{uuid.uuid4().hex[:8]}")
    assert set_setting(girder, "worker_slurm.qos", "normal") is True
    refused = set_setting(girder, "worker_slurm.mem", "a lot")
    assert (refused["type"], refused["field"]) == ("validation", "value")
    assert refused["message"].startswith(
        "worker_slurm.mem is 'a lot', which is not an amount of memory, such as"
    )
    assert set_setting(person, "worker_slurm.qos", "high")["type"] == "access"
    # As older provisioning files write it.
    assert set_setting(girder, "worker.slurm_ntasks", 2) is True
    assert set_setting(girder, "worker.slurm_qos", "high") is True
    status, answer = _asked(girder, girder.token)
    assert (status, answer) == (
        200,
        {"settings": {**FROM_ENVIRONMENT, "qos": "normal", "ntasks": 2}, "user": None},
    )
    for key in ("worker_slurm.qos", "worker.slurm_qos", "worker.slurm_ntasks"):
        set_setting(girder, key, "")
    assert _asked(girder, girder.token)[1]["settings"] == FROM_ENVIRONMENT


def test_nobody_else_is_answered(girder: GirderSite) -> None:
    anybody = requests.get(f"{girder.api}/token/session", timeout=30).json()["token"]
    person = girder.new_user(f"user{uuid.uuid4().hex[:8]}")
    assert [_asked(girder, token)[0] for token in (None, "made up", anybody, person.token)] == [
        401,
        401,
        401,
        403,
    ]


def test_a_job_gets_what_girder_s_settings_say_and_its_user_is_known_by_a_private_group(
    site: Site, girder: GirderSite
) -> None:
    person = girder.new_user(f"user{uuid.uuid4().hex[:8]}")
    group = person.call("POST", "group", params={"name": f"Group {uuid.uuid4().hex[:8]}", "public": False})
    mapping = site.worker.root.with_name(f"{site.worker.root.name}-users.yaml")
    mapping.write_text(MAPPING.format(group=group["name"]))
    mapping.chmod(0o644)
    site.worker.restart(
        f"[users]\nmapping_file = {mapping}\n[slurm.profiles]\n*/tests/show-* =\n    time = 0:20:00\n"
    )
    wanted = {
        "mem": "170",
        "time": "0:40:00",
        "cpus": 2,
        "ntasks": 1,
        "partition": "low",
        "gpu": 1,
        "gpu_partition": "high",
    }
    for name, value in wanted.items():
        assert set_setting(girder, f"worker_slurm.{name}", value) is True
    site = replace(site, girder=girder)
    image = _push(site, {"device_requests": [{"count": 1, "capabilities": [["gpu"]]}]})
    cli = girder.cli(image, "Show")

    job = person.run(cli, text="hello")
    log = person.log_at_end(job)
    detail = site.slurm_detail(job)
    for words in ("MinMemoryNode=170M", "TimeLimit=00:20:00", "CPUs/Task=2", "Partition=high", "gres:gpu:1"):
        assert words in detail
    assert "Girder settings, worker_slurm.account: Girder's settings may not choose" in log
    explained = re.sub(r" +", " ", site.worker.command("explain", job))
    assert "--mem=170 Girder settings, worker_slurm.mem" in explained
    assert "--cpus-per-task=2 Girder settings, worker_slurm.cpus" in explained
    assert "--partition=high Girder settings, worker_slurm.gpu_partition" in explained
    assert "instead of --time=0:40:00, Girder settings, worker_slurm.time" in explained
    me = person.call("GET", "user/me")
    told = {
        "id": me["_id"],
        "login": me["login"],
        "email": me["email"],
        "groups": {group["_id"]: group["name"]},
    }
    assert next(e for e in site.worker.entries_of(job) if e["event"] == "admitted")["user"] == told
    assert "by its plugin worker_slurm" in site.worker.attempt("doctor", "--no-probe").stdout

    # The job's own token belongs to no user, and is answered; the administrator is in no group.
    token = girder.call("GET", f"job/{job}")["jobInfoSpec"]["headers"]["Girder-Token"]
    status, answer = _asked(girder, token)
    assert (status, answer["user"]) == (200, None)
    assert answer["settings"] == {**FROM_ENVIRONMENT, **wanted, "mem": 170}
    refused = girder.wait_for_end(girder.run(cli, text="hello"), seconds=60)
    assert refused["status"] == ERROR
    assert "does not have them" in "".join(refused["log"])
