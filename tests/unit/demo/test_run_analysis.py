"""What the demonstration prints about a job, and what it takes for a result."""

import hashlib
import json
import zipfile

import pytest

from worker.demo import picture as picture_module
from worker.demo.run_analysis import (
    CLI,
    DemoFailed,
    Follower,
    check_counts,
    ingest_once,
    slurm_job_of,
    upload_once,
    write_facts,
)


@pytest.fixture
def shown():
    lines = []
    return Follower(lines.append, lambda: 1.25), lines


def job(status, log="", **progress):
    return {"status": status, "log": [log] if log else [], "progress": progress or None}


def test_each_line_and_each_change_of_state_is_printed_once(shown):
    follower, lines = shown
    follower.show(job(1))
    follower.show(job(1))
    follower.show(job(2, "one\ntw", current=1, total=4, message="Counting"))
    follower.show(job(2, "one\ntwo\n", current=1, total=4, message="Counting"))
    follower.show(job(3, "one\ntwo\nlast"))
    assert [" ".join(line.split()) for line in lines] == [
        "1.2 s QUEUED",
        "| one",
        "1.2 s RUNNING 25 % Counting",
        "| two",
        "| last",
        "1.2 s SUCCESS",
    ]


def test_an_unknown_state_is_printed_as_its_number(shown):
    follower, lines = shown
    follower.show(job(999))
    assert "999" in lines[0]


def test_the_slurm_job_is_found_in_the_log():
    assert slurm_job_of({"log": ["Submitted as Slurm ", "job 17.\nSlurm job 17 completed on n1."]}) == "17"
    assert slurm_job_of({"log": None}) == ""


def counts(**changed):
    return json.dumps({"pixels": {"total": 9, "tissue": 4}, "stainedPixels": 2, **changed}).encode()


def test_plausible_counts_are_taken():
    assert check_counts(counts())["stainedPixels"] == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", counts(stainedPixels=0), counts(stainedPixels=5), counts(pixels={"total": 9})],
)
def test_other_counts_are_a_failure(content):
    with pytest.raises(DemoFailed):
        check_counts(content)


def test_facts_are_lines_for_a_shell(tmp_path):
    write_facts(tmp_path / "facts", {"demo_job": "1", "demo_fraction": "67.9%"})
    assert (tmp_path / "facts").read_text() == "demo_job='1'\ndemo_fraction='67.9%'\n"


def test_only_the_expected_picture_is_taken_from_a_wheel(tmp_path, monkeypatch):
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(picture_module.MEMBER, b"pixels")
    with pytest.raises(picture_module.PictureMissing, match="not the picture"):
        picture_module.extract(wheel, tmp_path / "ihc.png")
    assert not (tmp_path / "ihc.png").exists()
    monkeypatch.setattr(picture_module, "SHA256", hashlib.sha256(b"pixels").hexdigest())
    picture_module.extract(wheel, tmp_path / "ihc.png")
    assert (tmp_path / "ihc.png").read_bytes() == b"pixels"


def test_a_wheel_without_the_picture_is_named(tmp_path):
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(picture_module.PictureMissing, match=r"other\.whl has no"):
        picture_module.extract(wheel, tmp_path / "ihc.png")


class EmptyGirder:
    """A Girder that keeps what it is given."""

    def __init__(self):
        self.kept, self.clis = {}, []

    def files(self, _folder):
        return self.kept

    def call(self, _method, path, **params):
        if path == "file":
            self.kept[params["name"]] = {"_id": "f", "size": params["size"]}
            return self.kept[params["name"]]
        if path == "slicer_cli_web/docker_image":
            self.clis.append({"_id": "c", "name": CLI, "image": json.loads(params["name"])})
            return {"_id": "j"}
        return {"slicer_cli_web/cli": self.clis, "job/j": {"status": 3}}.get(path, "folder")


def test_a_second_run_claims_neither_upload_nor_ingest(tmp_path):
    picture = tmp_path / "ihc.png"
    picture.write_bytes(b"png")
    girder, claimed = EmptyGirder(), []
    for _ in range(2):
        done = []
        upload_once(girder, "folder", picture, done)
        ingest_once(girder, "host/image:1", lambda: True, done)
        claimed.append(done)
    assert claimed == [["uploaded", "ingested"], []]
