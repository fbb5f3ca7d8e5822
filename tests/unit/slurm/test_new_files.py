"""What an analysis wrote besides its outputs: one archive, once, beside them."""

from __future__ import annotations

import io
import os
import zipfile

import pytest

from girder_worker_slurm.celery_worker.message import DecodedTask
from girder_worker_slurm.errors import GirderUnreachable, JobCancelled
from girder_worker_slurm.girder.new_files import ArchiveRules, upload_new_files
from girder_worker_slurm.records.record import Record
from tests.unit.slurm.http_girder import Mishap, http_girder
from tests.unit.slurm.test_outputs import Bench as OutputBench


@pytest.fixture
def girder():
    with http_girder() as girder:
        yield girder


class Bench(OutputBench):
    def __init__(self, tmp_path, girder):
        super().__init__(tmp_path, girder)
        self.girder = girder
        self.write("inputs/0/slide.svs", b"slide")
        self.write("inputs/1/table.csv", b"table")
        (self.run / "job.slurm").write_text("#!/bin/bash\n")

    def upload(self, *hooks, limit=10**9, check=lambda: None):
        decoded = DecodedTask((), {}, {}, None, hooks or (self.to_folder("out.csv"),))
        return upload_new_files(
            decoded, self.record, place=self.run, api_url="", limit_bytes=limit, check=check
        )

    def archives(self):
        return [
            {name: made.read(name) for name in made.namelist()}
            for data in self.girder.contents("new-files-t1.zip")
            for made in [zipfile.ZipFile(io.BytesIO(data))]
        ]


@pytest.fixture
def bench(tmp_path, girder):
    return Bench(tmp_path, girder)


def test_what_is_new_or_was_written_to_is_kept_and_what_is_in_girder_already_is_not(bench):
    bench.write("out.csv")
    bench.deliver(bench.to_folder("out.csv"))
    bench.write("deep/er/log.txt", b"said")
    bench.write("inputs/1/table.csv", b"changed")
    later = (bench.run / "job.slurm").stat().st_mtime + 5
    os.utime(bench.run / "volume/inputs/1/table.csv", (later, later))
    before = (bench.run / "job.slurm").stat().st_mtime - 5
    os.utime(bench.run / "volume/inputs/0/slide.svs", (before, before))
    assert bench.upload() == "2 new files besides the outputs: new-files-t1.zip."
    assert bench.archives() == [{"deep/er/log.txt": b"said", "inputs/1/table.csv": b"changed"}]


def test_without_anything_new_nothing_is_made_or_said(bench):
    for name in ("inputs/0/slide.svs", "inputs/1/table.csv"):
        os.utime(bench.run / "volume" / name, (1, 1))
    assert bench.upload() == ""
    assert bench.archives() == []


def test_a_worker_that_died_in_between_uploads_it_once(bench, girder):
    bench.write("log.txt", b"said")
    girder.mishaps.append(Mishap("POST", "/file/chunk", status=503))
    with pytest.raises(GirderUnreachable):
        bench.upload()
    bench.record = Record.load(bench.record.path, worker_id="w1")
    bench.write("log.txt", b"the archive is the one that was begun")
    assert bench.upload()
    assert bench.upload() == ""
    (archive,) = bench.archives()
    assert archive["log.txt"] == b"said"


def test_links_are_left_out_and_no_secret_gets_in(bench, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("key")
    bench.write("log.txt", b"said")
    (bench.run / "volume" / "link").symlink_to(secret)
    (bench.run / "volume" / "directory").symlink_to(tmp_path)
    (bench.run / "volume" / "inner").symlink_to("log.txt")
    os.mkfifo(bench.run / "volume" / "pipe")
    bench.upload()
    (archive,) = bench.archives()
    assert set(archive) - {"inputs/0/slide.svs", "inputs/1/table.csv"} == {"log.txt"}


def test_what_is_too_much_is_not_kept_and_said(bench):
    bench.write("large", b"x" * 2000)
    assert "(`archive_limit_bytes`)" in bench.upload(limit=1000)
    assert bench.archives() == []


def test_a_task_without_outputs_has_no_place_for_it(bench):
    bench.write("log.txt")
    decoded = DecodedTask((), {}, {}, None, ())
    said = upload_new_files(
        decoded, bench.record, place=bench.run, api_url="", limit_bytes=10**9, check=lambda: None
    )
    assert "no place" in said


def test_a_refusal_of_girder_is_said_and_fails_nothing(bench, girder):
    bench.write("log.txt")
    girder.mishaps.append(Mishap("POST", "/file", status=403))
    assert bench.upload() == "Girder refused the archive of the new files (403)."


def test_a_cancel_stops_it(bench):
    bench.write("log.txt")

    def check():
        raise JobCancelled("in Girder")

    with pytest.raises(JobCancelled):
        bench.upload(check=check)
    assert not list((bench.run / "archive").glob("*"))


def test_dates_and_names_of_any_kind_are_kept(bench):
    path = bench.write("old", b"of 1970")
    os.utime(path, (1, 1))
    odd = os.fsdecode(b"caf\xe9")
    bench.write(odd, b"odd")
    bench.upload()
    (archive,) = bench.archives()
    assert archive["old"] == b"of 1970"
    assert b"odd" in archive.values()


def test_images_and_clis_are_chosen_by_pattern():
    rules = ArchiveRules(("team/*", "other/tool* Seg*"))
    assert rules.fit(("team/x:1",), "Any")
    assert rules.fit(("other/tool:1",), "Segment")
    assert not rules.fit(("other/tool:1",), "Count")
    assert not ArchiveRules().fit(("team/x",), "")
