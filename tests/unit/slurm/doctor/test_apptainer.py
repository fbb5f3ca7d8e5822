"""Apptainer on this machine: its version, and a container that is really made."""

from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner
from girder_worker_slurm.doctor import apptainer
from girder_worker_slurm.doctor.finding import Level
from tests.unit.slurm.doctor.here import levels, settings_with


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apptainer version 1.4.5\n", "ok"),
        ("apptainer version 1.1.9-1.el9", "warn"),
        ("apptainer version 1.0.3", "fail"),
        ("singularity-ce version 4.1.0-jammy", "ok"),
        ("singularity-ce version 3.11.4", "warn"),
        ("singularity version 3.8.7-1.el8", "fail"),
        ("podman version 5", "warn"),
    ],
)
def test_versions_of_apptainer_and_singularity(text, expected):
    assert levels(apptainer.judge_version("x", text)) == [expected]


def test_a_container_is_really_made_and_started(tmp_path):
    def program(call):
        if "build" in call.argv:
            Path(call.argv[-2]).touch()
        return FakeAnswer()

    runner = FakeCommandRunner({"apptainer": program})

    assert levels(apptainer.check_container("apptainer", runner, tmp_path)) == ["ok"]
    assert ["build" in runner.calls[0].argv, "exec" in runner.calls[1].argv] == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_a_container_is_started_where_its_user_can_be_wherever_the_doctor_was_called(tmp_path):
    def program(call):
        if "build" in call.argv:
            Path(call.argv[-2]).touch()
        return FakeAnswer()

    runner = FakeCommandRunner({"apptainer": program})
    list(apptainer.check_container("apptainer", runner, tmp_path))

    assert [call.cwd.parent for call in runner.calls] == [tmp_path, tmp_path]


def test_a_directory_that_cannot_be_entered_is_not_mended_by_user_namespaces():
    words = "FATAL: can't change directory to /home/pat/site: permission denied"
    (finding,) = apptainer.judge_container("x", 255, words, where="here")
    assert "namespaces" not in finding.remedy
    assert "enter that directory" in finding.remedy


def test_apptainer_s_colours_are_not_told():
    words = "\x1b[91mERROR  : Failed to create user namespace: no\n\x1b[0m"
    (finding,) = apptainer.judge_container("x", 1, words, where="here")
    assert (
        finding.found == "A container cannot be started here: ERROR  : Failed to create user namespace: no."
    )
    assert "user namespaces" in finding.remedy


@pytest.mark.parametrize("failing", ["build", "exec"])
def test_a_container_that_cannot_be_made_or_started_fails_in_apptainers_words(tmp_path, failing):
    def program(call):
        if "build" in call.argv:
            Path(call.argv[-2]).touch()
        return FakeAnswer(255, stderr="FATAL: no user namespaces") if failing in call.argv else FakeAnswer()

    (finding,) = apptainer.check_container("apptainer", FakeCommandRunner({"apptainer": program}), tmp_path)

    assert finding.level is Level.FAIL
    assert "no user namespaces" in finding.found


def test_no_room_for_a_conversion_fails(tmp_path):
    settings = settings_with(tmp_path)
    starving = settings.model_copy(
        update={"singularity": settings.singularity.model_copy(update={"min_free_bytes": 10**18})}
    )

    assert levels(apptainer.check_conversion(settings)) == []
    assert levels(apptainer.check_conversion(starving)) == ["fail"]
