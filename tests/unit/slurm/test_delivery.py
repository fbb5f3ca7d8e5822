"""Outputs on their way from a run directory to Girder: what cannot be read ends the job, and what nobody wants is left there."""

from __future__ import annotations

import errno
import json
import os

import jsonpickle
import pytest
from girder_client import GirderClient
from girder_worker.docker.transforms import VolumePath
from girder_worker.docker.transforms.girder import GirderUploadVolumePathJobArtifact

from girder_worker_slurm.girder.job_updates import JobStatus
from girder_worker_slurm.testing import FakeProgram


def girder_client():
    client = GirderClient(apiUrl="http://girder.invalid/api/v1")
    client.token = "t"
    return client


def hooks_of(*hooks):
    """As a message has them."""
    return [json.loads(jsonpickle.encode(hook)) for hook in hooks]


def test_outputs_that_cannot_be_read_for_good_end_the_job(site):
    """Files of a fakeroot's own users in another user's run directory: it was tried again for ever."""
    site.task(hooks=hooks_of(VolumePath("out.csv")))

    def outputs_place(token, check):
        del token, check
        raise PermissionError(errno.EPERM, "Operation not permitted", "volume/private")

    site.runs.outputs_place = outputs_place
    site.run_to_the_end(seconds=60)
    verdict = site.state().verdict
    assert (verdict.code, site.shown().status) == ("output_refused", JobStatus.ERROR)
    assert "volume/private" in verdict.sentence
    assert site.state().owes_outputs


def test_a_failed_job_whose_files_cannot_be_read_ends_for_its_own_reason(site):
    site.cluster.default_program = FakeProgram(exit_code=3)
    artifact = GirderUploadVolumePathJobArtifact(
        VolumePath("core"), upload_on_exception=True, gc=girder_client()
    )
    site.task(hooks=hooks_of(artifact))

    def outputs_place(token, check):
        del token, check
        raise PermissionError(errno.EPERM, "Operation not permitted", "volume/private")

    site.runs.outputs_place = outputs_place
    site.run_to_the_end(seconds=60)
    assert site.state().verdict.code == "failed"
    assert "An artifact could not be kept: The outputs cannot be read" in "".join(site.shown().log)


@pytest.mark.parametrize(
    ("exit_code", "hooks"),
    [
        (0, ()),
        (3, ()),
        (3, (VolumePath("out.csv"),)),
        (3, (GirderUploadVolumePathJobArtifact(VolumePath("core"), gc=girder_client()),)),
    ],
)
def test_files_that_go_nowhere_are_not_brought_from_another_user(site, exit_code, hooks):
    """They may be many gigabytes."""
    site.cluster.default_program = FakeProgram(exit_code=exit_code)
    asked = []
    site.runs.outputs_place = lambda token, _check: asked.append(token)
    site.task(hooks=hooks_of(*hooks))
    site.run_to_the_end(seconds=60)
    assert site.shown().status == (JobStatus.ERROR if exit_code else JobStatus.SUCCESS)
    assert asked == []


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_outputs_on_a_file_system_that_stumbles_are_brought_a_little_later(site, monkeypatch, number):
    """The job ended as one whose outputs cannot be read."""
    site.task(hooks=hooks_of(VolumePath("out.csv")))
    scandir, left = os.scandir, [1, 2]

    def stumbling(path):
        if left and str(path).endswith("/volume"):
            left.pop()
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stumbling)
    site.run_to_the_end(seconds=120)
    assert not left
    assert site.shown().status == JobStatus.SUCCESS
