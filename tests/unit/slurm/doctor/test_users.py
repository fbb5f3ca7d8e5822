"""What the doctor says about the mapping of users."""

from __future__ import annotations

import pytest

from girder_worker_slurm.cluster.run_as import own_name
from girder_worker_slurm.doctor.finding import Level
from girder_worker_slurm.doctor.users import check_mapping, judge_users, recent_jobs
from girder_worker_slurm.job.state import GirderUser
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record
from girder_worker_slurm.settings import load_settings
from girder_worker_slurm.users.mapping import UserMapping
from girder_worker_slurm.users.mapping_file import parse_mapping

ADA = GirderUser("5f01", "ada", "ada@example.org", {"6a": "Pathology"})
BY_GROUP = parse_mapping("users:\n- group: Pathology\n  account: patho")


def found_in(tmp_path, text, mode=0o600):
    file = tmp_path / "users.yaml"
    file.write_text(text)
    file.chmod(mode)
    return list(check_mapping(load_settings((), {"GIRDER_WORKER_SLURM_USERS": str(file)})))


def test_a_mapping_is_counted(tmp_path):
    (finding,) = found_in(tmp_path, "users:\n- login: ada\n- login: bob\n- group: P")
    assert finding.level is Level.OK
    assert "2 by login, 1 by group; jobs of others are refused" in finding.found


def test_a_mapping_that_makes_no_sense_fails_and_so_forbids_the_start(tmp_path):
    (finding,) = found_in(tmp_path, "users:\n- login: ada\n  acount: x")
    assert finding.level is Level.FAIL
    assert "users.yaml:3: unknown key `acount`" in finding.found


def test_private_keys_in_a_jarvice_file_that_others_can_read_are_warned_of(tmp_path):
    text = "users_id_mapping:\n- mail: a@b.c\n  ssh_private_key_b64: x"
    first, keys = found_in(tmp_path, text, 0o644)
    assert (first.level, keys.level) == (Level.OK, Level.WARN)
    assert "chmod 600" in keys.remedy
    assert len(found_in(tmp_path, text)) == 1


@pytest.mark.parametrize(
    ("more", "fails"),
    [
        ("", True),
        ("unix_users = kirby\n", True),
        ("run_root = /scratch/{user}/girder\n", True),
        ("unix_users = kirby\nrun_root = /scratch/{user}/girder\n", False),
    ],
)
def test_unix_users_in_the_mapping_forbid_the_start_until_all_is_set_for_them(tmp_path, more, fails):
    (tmp_path / "users.yaml").write_text("users_id_mapping:\n- mail: a@b.c\n  mapped_user: kirby")
    config = tmp_path / "worker.cfg"
    config.write_text(f"[users]\nmapping_file = {tmp_path}/users.yaml\n{more}")
    levels = [finding.level for finding in check_mapping(load_settings((config,), {}))]
    assert levels == [Level.OK, *([Level.FAIL] if fails else [])]


def test_the_workers_own_user_in_the_mapping_needs_nothing(tmp_path):
    (finding,) = found_in(tmp_path, f"users:\n- login: ada\n  unix_user: {own_name()}")
    assert finding.level is Level.OK


@pytest.mark.parametrize(
    ("mapping", "users", "level", "words"),
    [
        (UserMapping(), [ADA], None, ""),
        (parse_mapping("users:\n- login: ada"), [], Level.OK, "told by every Girder 5"),
        (BY_GROUP, [], Level.WARN, "not known before a job has run"),
        (BY_GROUP, [GirderUser("5f01", "ada"), ADA], Level.WARN, "neither the e-mail address nor the groups of ada"),
        (BY_GROUP, [ADA], Level.OK, "tells e-mail addresses and groups"),
    ],
)  # fmt: skip
def test_which_keys_work_is_known_from_the_latest_jobs(mapping, users, level, words):
    findings = list(judge_users(mapping, users))
    assert [finding.level for finding in findings] == ([] if level is None else [level])
    assert all(words in finding.found for finding in findings)


def test_a_girder_with_our_plugin_tells_all_whatever_it_told_before():
    (finding,) = judge_users(BY_GROUP, [GirderUser("5f01", "ada")], by_plugin=True)
    assert (finding.level, finding.found) == (
        Level.OK,
        "Girder tells e-mail addresses and groups by its plugin worker_slurm.",
    )


def test_groups_whose_names_are_not_told_are_named():
    findings = list(judge_users(BY_GROUP, [GirderUser("1", "a", "a@b.c", {"6a": "x", "6c": ""})]))
    assert [finding.level for finding in findings] == [Level.OK, Level.WARN]
    assert "(6c)" in findings[1].found


def test_the_latest_jobs_say_whose_they_were(tmp_path):
    root = JobsRoot(tmp_path, "w1")
    root.prepare()
    for number, user in enumerate([None, ADA]):
        message = {"task_id": f"t{number}", "task": "x", "headers": {}, "properties": {}}
        record = Record.create(root.records, message, worker_id="w1", at=1.0)
        record.append("admitted", kind="container", girder=None, user=user.as_entry() if user else None)
    (root.records / "broken").mkdir()
    (root.records / "broken" / "state.jsonl").write_text("nonsense")
    assert [job.user for job in recent_jobs(tmp_path) if job.user is not None] == [ADA]
