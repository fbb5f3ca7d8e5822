"""What a site brings along for its jobs, on the real stack: data, modules, and as few of Slurm's commands as may be."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.girder_site import ERROR, SUCCESS, wait_until
from tests.support.images import build_and_push_image

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Toy</category><title>Do</title><description>Runs a script.</description>
  <version>1.0</version><license>Apache-2.0</license><contributor>Tests</contributor>
  <parameters>
    <label>All</label><description>All</description>
    <file fileExtensions=".txt"><name>outputFile</name><label>Output</label><description>For the script</description>
      <channel>output</channel><index>0</index></file>
    <string><name>script</name><label>Script</label><description>For sh</description>
      <longflag>script</longflag><default></default></string>
  </parameters>
</executable>
"""
_ENTRY = """#!/bin/sh
case "$*" in
  --list_cli) echo '{"Do": {"type": "python"}}'; exit 0 ;;
  "Do --xml") cat /opt/Do.xml; exit 0 ;;
esac
[ "$2" = --script ] && script=$3
for out in "$@"; do :; done
eval "$script"
"""
_NEEDED = ("sbatch", "squeue", "scancel", "scontrol")
#: The rest of Slurm's commands that a cluster may lack.
_OPTIONAL = ("srun", "sacct", "sstat", "sinfo", "sattach", "sacctmgr", "salloc", "sreport", "sdiag")


@pytest.fixture(scope="module")
def image(shared_site: Site) -> str:
    """An image whose CLI runs a script; ingested."""
    if not shared_site.worker.is_running:
        shared_site.worker.start()
    reference = build_and_push_image(
        shared_site.stack["DEVSTACK_REGISTRY"],
        f"tests/do-{uuid.uuid4().hex[:8]}:1",
        {"/opt/entry.sh": _ENTRY, "/opt/Do.xml": _XML},
        entrypoint=["/opt/entry.sh"],
    )
    shared_site.girder.ingest(reference)
    return reference


def _ended(site: Site, image: str, script: str, status: int = SUCCESS, **params: Any) -> tuple[str, str]:
    """The log of a job that ran this script, and the job's id."""
    folder = params.pop("folder", None) or site.girder.new_folder()
    job = site.girder.run(
        site.girder.cli(image, "Do"), script=script, outputFile="out.txt", outputFile_folder=folder, **params
    )
    return site.girder.log_at_end(job, status), job


def _open_directory(site: Site, name: str) -> Path:
    path = site.worker.root.with_name(f"{site.worker.root.name}-{name}")
    path.mkdir(exist_ok=True)
    path.chmod(0o755)
    return path


def _linked(directory: Path, programs: dict[str, str]) -> Path:
    for name, target in programs.items():
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(target)
    return directory


def _programs(site: Site) -> dict[str, str]:
    """All programs that a login of the worker's user finds, but for those of the stack."""
    found: dict[str, str] = {}
    path = site.stack.user_environment()["PATH"].removeprefix(f"{site.stack['DEVSTACK_PATH']}:")
    for directory in path.split(":"):
        for entry in os.scandir(directory):
            found.setdefault(entry.name, entry.path)
    return found


def test_a_container_sees_the_site_s_data_and_slurm_s_commands_come_by_a_module(
    site: Site, image: str
) -> None:
    data, home = _open_directory(site, "atlas of 2026"), _open_directory(site, "home")
    (data / "note").write_text("of the site\n")
    shared = _open_directory(site, "shared")
    shared.chmod(0o777 | stat.S_ISVTX)
    commands = _open_directory(site, "module")
    for name in _NEEDED:
        (commands / name).write_text(f'#!/bin/sh\n: >"{shared}/used {name}"\nexec /usr/bin/{name} "$@"\n')
        (commands / name).chmod(0o755)
    (home / ".bash_profile").write_text(
        f'module() {{ [ "$*" = "load slurm/test" ] && PATH={commands}:$PATH; }}\n'
    )
    site.worker.restart(
        "[slurm]\nslurm_module = slurm/test\n"
        f"[slurm.binds]\n{data} = /opt/atlas\n{shared} = /shared, rw, images=*/tests/do-*\n/no/such = images=other/*\n",
        HOME=str(home),
    )
    log, job = _ended(
        site,
        image,
        'cat /opt/atlas/note; touch /opt/atlas/new || echo "cannot be written"; echo made > /shared/made; echo x > "$out"; '
        'echo "job $JOB_ID on $JOB_JOB_FORMATED_NODELIST, $JOB_NNODES in all, $JOB_CPUS_ON_NODE processors"',
    )
    assert "of the site\n" in log
    assert "cannot be written" in log
    assert (shared / "made").read_text() == "made\n"
    detail = site.slurm_detail(job)
    node = detail.split(" NodeList=")[1].split()[0]
    assert f"job {site.worker.slurm_job_id(job)} on {node}, 1 in all, 1 processors" in log
    assert (shared / "used sbatch").is_file()  # the module's, not the one on PATH


def test_what_is_for_a_group_only_its_members_see(site: Site, image: str) -> None:
    data = _open_directory(site, "trial")
    (data / "note").write_text("of the trial\n")
    member, other = (site.girder.new_user(f"{name}{uuid.uuid4().hex[:8]}") for name in ("member", "other"))
    params = {"name": f"Trial {uuid.uuid4().hex[:8]}", "public": "true"}
    group = member.call("POST", "group", params=params)["_id"]
    site.worker.stop()
    jobs = [
        girder.run(
            girder.cli(image, "Do"),
            script="cat /opt/trial/note || echo nothing there",
            outputFile="out.txt",
            outputFile_folder=girder.new_folder(),
        )
        for girder in (member, other)
    ]
    site.girder.tell_groups()
    site.worker.restart(f"[slurm.binds]\n{data} = /opt/trial, groups={group}\n")
    logs = [
        "".join(girder.wait_for_end(job)["log"]) for girder, job in zip((member, other), jobs, strict=True)
    ]
    assert ["of the trial\n" in log for log in logs] == [True, False], logs
    assert "nothing there\n" in logs[1]


def test_a_job_on_a_node_without_the_site_s_data_says_so(site: Site, image: str) -> None:
    site.worker.restart("[slurm.binds]\n/no/such/atlas = /opt/atlas\n")
    log, _ = _ended(site, image, "echo ran", status=ERROR)
    assert "/no/such/atlas, which the site mounts into containers of this image, is not there on " in log
    assert "ran\n" not in log
    seen = _doctor(site)
    assert "/no/such/atlas is not on " in seen


def test_everything_works_with_four_commands_of_slurm(site: Site, image: str, folder: str) -> None:
    programs = {name: path for name, path in _programs(site).items() if name not in (*_NEEDED, *_OPTIONAL)}
    path = f"{site.stack['DEVSTACK_PATH']}:{_linked(_open_directory(site, 'programs'), programs)}"
    commands = _linked(_open_directory(site, "commands"), {name: f"/usr/bin/{name}" for name in _NEEDED})
    site.worker.restart(f"[slurm]\ncommands_dir = {commands}\n", PATH=path)
    log, _ = _ended(
        site,
        image,
        'echo out > "$out"; echo "job $JOB_ID"',
        folder=folder,
    )
    assert re.search(r"Used \d+ MiB of 150 MiB of memory", log), log
    assert site.girder.files(folder) == {"out.txt": b"out\n"}
    job = site.girder.run(
        site.girder.cli(image, "Do"),
        script="echo up; sleep 60",
        outputFile="b.txt",
        outputFile_folder=folder,
    )
    wait_until("it runs", lambda: "up\n" in site.girder.log(job), seconds=60)
    site.girder.cancel(job)
    assert "Cancelled" in "".join(site.girder.wait_for_end(job)["log"])
    seen = _doctor(site, PATH=path)
    assert "FAIL" not in seen
    assert f"are in {commands}" in seen


def _doctor(site: Site, **environment: str) -> str:
    program = Path(sys.executable).with_name("girder-slurm")
    env = {
        **site.stack.user_environment(),
        "GIRDER_WORKER_SLURM_CONFIG": str(site.worker.config),
        "GIRDER_WORKER_BROKER": site.stack["GIRDER_WORKER_BROKER"],
        **environment,
    }
    done = subprocess.run(
        site.stack.as_user([sys.executable, str(program), "doctor"]),
        env=env, cwd="/", check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_what_an_analysis_wrote_besides_its_outputs_is_kept(site: Site, image: str, folder: str) -> None:
    site.worker.restart("[jobs]\narchive_new_files = */tests/do-*\n")
    script = 'echo out > "$out"; cd "$(dirname "$out")"; mkdir more; echo note > more/note; {end}'
    log, job = _ended(site, image, script.format(end="true"), folder=folder)
    found = site.girder.files(folder)
    assert found.pop("out.txt") == b"out\n"
    ((name, archive),) = found.items()
    assert name == f"new-files-{job}.zip"
    assert f"1 new file besides the outputs: {name}." in log
    with zipfile.ZipFile(io.BytesIO(archive)) as made:
        assert {entry: made.read(entry) for entry in made.namelist()} == {"more/note": b"note\n"}
    _, failed = _ended(site, image, script.format(end="exit 3"), status=ERROR, folder=folder)
    with zipfile.ZipFile(io.BytesIO(site.girder.files(folder)[f"new-files-{failed}.zip"])) as made:
        assert sorted(made.namelist()) == ["more/note", "out.txt"]
    wait_until("the archives are removed here", lambda: not list(site.worker.root.glob("run/*/archive")))
