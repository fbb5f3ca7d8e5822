"""Directories as the doctor sees them: whose they are, who can read them, what they are mounted from."""

# ruff: noqa: S108 - paths that are only talked about

from __future__ import annotations

import json
from pathlib import Path

import pytest

from girder_worker_slurm.doctor import directories
from girder_worker_slurm.doctor.directories import DirectoryFacts, file_system_of, judge_directory, look_at
from girder_worker_slurm.doctor.finding import Level
from girder_worker_slurm.records.jobs_root import JobsRoot
from tests.unit.slurm.doctor.here import levels, settings_with

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /tmp rw - tmpfs tmpfs rw
31 22 0:40 / /shared/with\\040space rw - nfs4 server:/x rw
32 22 0:41 / /shared rw - lustre server:/y rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/tmp/x", "tmpfs"),
        ("/tmpx", "ext4"),
        ("/shared/x", "lustre"),
        ("/shared/with space/x", "nfs4"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_longest_mount(path, kind):
    assert file_system_of(Path(path), MOUNTS) == kind


def facts(**changes) -> DirectoryFacts:
    given = {
        "path": Path("/shared/jobs"),
        "exists": True,
        "refusal": "",
        "file_system": "nfs4",
        "free_bytes": 10**12,
        **changes,
    }
    return DirectoryFacts(**given)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["ok"]),
        ({"exists": False}, ["ok"]),
        ({"refusal": "permission denied"}, ["fail"]),
        ({"is_ours": False, "owner": "root"}, ["fail"]),
        ({"mode": 0o755}, ["ok", "warn"]),
        ({"file_system": "tmpfs"}, ["ok", "warn"]),
        ({"path": Path("/tmp/jobs")}, ["ok", "warn"]),
        ({"free_bytes": 10**6}, ["ok", "warn"]),
        ({"free_files": 5}, ["ok", "warn"]),
        ({"free_files": -1}, ["ok"]),
    ],
)
def test_what_is_wrong_with_a_private_directory(changes, expected):
    assert levels(judge_directory("x", "`x`", facts(**changes), private=True)) == expected


def test_a_directory_for_all_may_be_open_and_somebody_elses():
    assert levels(judge_directory("x", "`x`", facts(mode=0o777, is_ours=False), private=False)) == ["ok"]


def test_looking_makes_nothing_and_leaves_nothing(tmp_path):
    seen = look_at(tmp_path / "a" / "b")

    assert (seen.exists, seen.refusal) == (False, "")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path):
    (tmp_path / "a").write_text("")

    assert look_at(tmp_path / "a").refusal


def test_a_root_of_another_broker_fails(tmp_path):
    settings = settings_with(tmp_path)
    (tmp_path / "root.json").write_text(json.dumps({"broker": "other:5672/", "queues": ["celery"]}))

    assert "fail" in levels(directories.check_jobs_root(settings))


def test_a_root_that_a_worker_made_is_fine(tmp_path):
    settings = settings_with(tmp_path / "jobs")
    root = JobsRoot(tmp_path / "jobs", "w")
    root.prepare()
    root.identify(settings.celery.broker.get_secret_value(), settings.celery.queues)

    assert "fail" not in levels(directories.check_jobs_root(settings))


def test_somebody_elses_root_is_one_finding_only(tmp_path, monkeypatch):
    root = JobsRoot(tmp_path / "jobs", "w")
    root.prepare()
    monkeypatch.setattr("os.geteuid", lambda: 12345)

    assert levels(directories.check_jobs_root(settings_with(root.path))) == ["fail"]


def test_a_spool_that_others_can_write_is_a_warning(tmp_path):
    root = JobsRoot(tmp_path / "jobs", "w")
    root.prepare()
    root.path.joinpath("spool").chmod(0o777)

    found = list(directories.check_jobs_root(settings_with(root.path)))

    assert any("spool" in finding.found for finding in found if finding.level is Level.WARN)


def test_a_submit_script_has_to_exist_and_to_start_the_container(tmp_path):
    script = tmp_path / "site.slurm"
    settings = settings_with(tmp_path, GIRDER_WORKER_SLURM_SUBMIT_SCRIPT=str(script))

    assert levels(directories.check_submit_script(settings)) == ["fail"]
    script.write_text("#!/bin/bash\nhostname\n")
    assert levels(directories.check_submit_script(settings)) == ["ok", "warn"]
    script.write_text('#!/bin/bash\napptainer exec "$@"\n')
    assert levels(directories.check_submit_script(settings)) == ["ok"]
