"""What a CLI's own arguments, its docker-params, its image and the site ask of a real Slurm."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.girder_site import ERROR, SUCCESS, wait_until
from tests.support.images import build_and_push_image

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

_PARAMETER = (
    "<string><name>{name}</name><label>{name}</label><description>For Slurm</description>"
    "<longflag>{flag}</longflag><default></default></string>"
)
_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Toy</category><title>Show</title><description>Shows its arguments.</description>
  <version>1.0</version><license>Apache-2.0</license><contributor>Tests</contributor>
  <parameters><label>All</label><description>All</description>
    {parameters}
    <boolean><name>exclusive</name><label>exclusive</label><description>For Slurm</description>
      <longflag>slurm_exclusive</longflag><default>false</default></boolean>
    <string><name>text</name><label>Text</label><description>Shown</description>
      <longflag>text</longflag><default></default></string>
  </parameters>
</executable>
"""
_NAMES = ("mem", "time", "cpus-per-task", "comment", "account", "gres")
_ENTRY = """#!/bin/sh
case "$*" in
  --list_cli) cat /opt/list.json; exit 0 ;;
  "Show --xml") cat /opt/Show.xml; exit 0 ;;
esac
for argument in "$@"; do echo "<$argument>"; done
echo "gpus=$SLURM_JOB_GPUS nice=$(cut -d' ' -f19 /proc/self/stat) word=$SITE_WORD"
"""


def _push(site: Site, docker_params: dict[str, Any], **image: Any) -> str:
    parameters = "".join(
        _PARAMETER.format(name=name.replace("-", "_"), flag=f"slurm_{name}") for name in _NAMES
    )
    reference = build_and_push_image(
        site.stack["DEVSTACK_REGISTRY"],
        f"tests/show-{uuid.uuid4().hex[:8]}:1",
        {
            "/opt/entry.sh": _ENTRY,
            "/opt/list.json": json.dumps({"Show": {"type": "python", "docker-params": docker_params}}),
            "/opt/Show.xml": _XML.format(parameters=parameters),
        },
        entrypoint=["/opt/entry.sh"],
        **image,
    )
    site.girder.ingest(reference)
    return reference


def _ended(site: Site, image: str, status: int = SUCCESS, **params: Any) -> tuple[str, str]:
    job = site.girder.run(site.girder.cli(image, "Show"), **params)
    return site.girder.log_at_end(job, status), job


def test_each_who_has_a_say_reaches_slurm_and_the_program_sees_none_of_it(site: Site) -> None:
    site.worker.restart(
        "[slurm.profiles]\n"
        "*/tests/show-* Show =\n"
        "    comment = of the profile\n"
        "    mem = 160\n"
        "[slurm.limits]\n"
        "time = 2:00:00\n"
    )
    image = _push(site, {"slurm": {"cpus-per-task": 2, "time": 50}}, labels={"slurm.mem": "170"})
    log, job = _ended(site, image, mem="180", time="1:30:00", gres="gpu:1", text="hello")
    detail = site.slurm_detail(job)
    assert re.search(r"MinMemoryNode=180M|mem=180M", detail), detail
    assert "TimeLimit=01:30:00" in detail
    assert "CPUs/Task=2" in detail
    assert "Comment=of the profile" in detail or "Comment=of_the_profile" in detail
    assert "gres:gpu:1" in detail
    assert "slurm" not in log.split("gpus=")[0].split("<Show>")[1]
    assert "<hello>" in log
    assert re.search(r"gpus=\d", log)
    explained = site.worker.command("explain", job)
    assert "--mem=180" in explained
    assert "instead of --mem=170, The label slurm.mem of the image" in explained
    assert "instead of --mem=160, [slurm.profiles] */tests/show-* Show" in explained


def test_a_flag_takes_no_argument_of_the_program(site: Site) -> None:
    log, job = _ended(site, _push(site, {}), exclusive="true", text="after")
    assert "<--text>\n<after>" in log
    assert "OverSubscribe=NO" in site.slurm_detail(job)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"account": "somebody"}, "`account` may not be chosen here; allowed are"),
        ({"mem": "a lot"}, "is not an amount of memory"),
        ({"time": "3:00:00"}, "180 minutes, more than the 120 that one job may have here"),
    ],
)
def test_what_may_not_be_asked_for_ends_the_job_before_slurm_hears_of_it(
    site: Site, params: dict[str, str], words: str
) -> None:
    site.worker.restart("[slurm.limits]\ntime = 2:00:00\n")
    log, _ = _ended(site, _push(site, {}), status=ERROR, **params)
    assert words in log


def test_a_site_s_commands_run_around_the_container_which_srun_starts(site: Site) -> None:
    site.worker.restart(
        "[slurm]\n"
        'prerun_commands =\n    echo "before $SITE_WORD $SLURM_JOB_ID"\n    export LATER=kept\n'
        'postrun_commands =\n    echo "after $LATER"\n    false\n'
        "use_srun = true\n"
        "srun_append = nice -n 5\n"
        "[slurm.variables]\n"
        "SITE_WORD = two words\n"
        "[slurm.srun_options]\n"
        "n = 1\n"
        "cpu-bind = none\n"
        "[slurm.profiles]\n"
        "*/tests/show-* =\n"
        "    prerun = echo of the profile\n"
    )
    log, job = _ended(site, _push(site, {}), text="hello")
    slurm_job = site.worker.slurm_job_id(job)
    lines = log.splitlines()
    wanted = [
        f"before two words {slurm_job}",
        "of the profile",
        "<hello>",
        "gpus= nice=5 word=",
        "after kept",
    ]
    assert [line for line in lines if line in wanted] == wanted, log


def test_a_result_counts_that_was_there_when_slurm_killed_the_lines_after_the_container(
    site: Site, folder: str
) -> None:
    site.worker.restart("[slurm]\npostrun_commands =\n    echo after; sleep 100\n")
    job = site.run_toy(folder)
    wait_until("the lines after", lambda: "after\n" in site.girder.log(job), seconds=60)
    slurm_job = site.worker.slurm_job_id(job)
    site.slurm("scancel", "--signal=KILL", "--full", slurm_job)
    log = "".join(site.girder.wait_for_end(job, seconds=60)["log"])
    assert site.girder.status(job) == SUCCESS, log
    assert site.slurm_state(slurm_job) == "CANCELLED"
    assert "out.txt" in site.girder.files(folder)


def test_a_shape_and_the_site_s_rules_for_gpus_and_time_reach_slurm(site: Site) -> None:
    site.worker.restart(
        "[slurm.profiles]\n"
        "*/tests/show-* =\n"
        "    shape = distributed\n"
        "    cpus = 2\n"
        "    mem = 300\n"
        "[slurm.gpu_options]\n"
        "gres = gpu:{gpus}\n"
        "partition = high\n"
        "[slurm.limits]\n"
        "time = 2:00:00\n"
    )
    log, job = _ended(site, _push(site, {"device_requests": [{"count": 1, "capabilities": [["gpu"]]}]}))
    assert re.search(r"gpus=\d", log)
    detail = site.slurm_detail(job)
    for words in (
        "NumCPUs=2",
        "NumTasks=2",
        "CPUs/Task=1",
        "MinMemoryCPU=150M",
        "Partition=high",
        "gres:gpu:1",
    ):
        assert words in detail
    # The partition has no limit of its own.
    assert "TimeLimit=02:00:00" in detail
    assert "--time=120 [slurm.limits] time" in re.sub(r" +", " ", site.worker.command("explain", job))


def test_names_of_other_systems_reach_slurm(site: Site) -> None:
    site.worker.restart(
        "[executors.slurm]\n"
        'prerun_commands = ["echo of covalent"]\n'
        "[executors.slurm.options]\n"
        'comment = "as covalent says it"\n'
        "[slurm]\n"
        "allow_options = partition, overlay, mail-type, mail-user, time\n"
    )
    devices = ["partition=high", "exclusive=False", "overlay=100", "sbatch_time=7", "sbatch_mail-type=END"]
    image = _push(site, {"devices": devices, "slurm": {"mail-user": "nobody@localhost"}})
    log, job = _ended(site, image)
    assert "of covalent\n" in log
    detail = site.slurm_detail(job)
    for words in ("Partition=high", "TimeLimit=00:07:00", "MailType=END", "MailUser=nobody@localhost"):
        assert words in detail
    assert "Comment=as covalent says it" in detail or "Comment=as_covalent_says_it" in detail
    token = re.search(r"JobName=(\S+)", detail)
    assert token
    script = (site.worker.root / "run" / token[1] / "job.slurm").read_text()
    assert "overlay create --sparse --size 100 " in script
