"""A scientist starts a CLI in stock Girder; it runs in Slurm; log, progress, outputs and status come back."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import ERROR, RUNNING, SUCCESS, wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site
    from tests.support.slow_link import SlowLink

pytestmark = pytest.mark.girder


def test_a_cli_runs_to_success_and_its_output_is_uploaded(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, text="plain"))
    assert job["status"] == SUCCESS, job["log"]
    log = "".join(job["log"])
    assert "toy starts in /opt/toy" in log
    assert "to stderr" in log
    assert "toy ends" in log
    assert site.girder.files(folder)["out.txt"] == b"text=<plain>\ninput=hello\n"


@pytest.mark.parametrize(
    "text",
    [
        "with space",
        "quote\" and 'single'",
        "$(touch /tmp/x) `id` $HOME ;|&",
        "a,b,c",
        "é ü 漢 ☃",
        "-dash",
        "back\\slash",
        "*?[a]",
    ],
)
def test_arguments_arrive_byte_for_byte(site: Site, folder: str, text: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, text=text))
    assert job["status"] == SUCCESS, job["log"]
    assert site.girder.files(folder)["out.txt"] == f"text=<{text}>\ninput=hello\n".encode()


def test_two_inputs_of_the_same_name_and_a_folder_of_outputs(site: Site, folder: str) -> None:
    first = site.girder.upload(site.girder.new_folder(), "same name, really.txt", b"first\n")
    second = site.girder.upload(site.girder.new_folder(), "same name, really.txt", b"second\n")
    job = site.girder.run(site.sum, first=first, second=second, outputDir="parts", outputDir_folder=folder)
    ended = site.girder.wait_for_end(job)
    assert ended["status"] == SUCCESS, ended["log"]
    files = site.girder.files(folder)
    assert files["both.txt"] == b"first\nsecond\n"
    assert files["deep/first.txt"] == b"first\n"
    assert files["empty.txt"] == b""
    assert len(files) == 3


def test_an_output_may_have_the_name_of_an_input(site: Site, folder: str) -> None:
    file = site.girder.upload(site.girder.new_folder(), "slide.txt", b"input\n")
    job = site.girder.run(
        site.toy, inputFile=file, outputFile="slide.txt", outputFile_folder=folder, text="x"
    )
    assert site.girder.wait_for_end(job)["status"] == SUCCESS
    assert site.girder.files(folder) == {"slide.txt": b"text=<x>\ninput=input\n"}


def test_a_failing_cli_ends_the_job_with_its_exit_code(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, code=3))
    assert job["status"] == ERROR
    assert "exit code 3" in "".join(job["log"])
    assert "out.txt" not in site.girder.files(folder)


def test_an_output_that_was_not_written_is_an_error_that_names_it(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, mode="no-output"))
    assert job["status"] == ERROR
    assert "did not write its output" in "".join(job["log"])
    assert "out.txt" in "".join(job["log"])


def test_log_and_progress_are_live_while_the_job_runs(site: Site, folder: str) -> None:
    job = site.run_toy(folder, sleep=8)
    site.girder.wait_for(job, RUNNING)
    wait_until("the first second is in the log", lambda: "second 1\n" in site.girder.log(job), seconds=30)
    seen = []
    for number in range(3, 7):
        wait_until(f"second {number}", lambda n=number: f"second {n}\n" in site.girder.log(job), seconds=10)
        seen.append(time.monotonic())
    # The toy writes one line a second: lines that come in bursts are late.
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) < 2.5
    assert site.girder.job(job)["progress"]["message"] == "Toy"
    ended = site.girder.wait_for_end(job)
    assert ended["status"] == SUCCESS
    assert "<filter-" not in "".join(ended["log"])
    assert [line for line in "".join(ended["log"]).splitlines() if line.startswith("second")] == [
        f"second {n}" for n in range(1, 9)
    ]


def test_output_that_is_not_utf8_does_not_disturb(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, mode="latin1"))
    assert job["status"] == SUCCESS
    assert "caf\ufffd and é" in "".join(job["log"])


def test_a_long_log_is_complete_in_order_and_once(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, lines=20000), seconds=120)
    assert job["status"] == SUCCESS
    lines = [line for line in "".join(job["log"]).splitlines() if line.startswith("line ")]
    assert lines == [f"line {n}" for n in range(1, 20001)]


def test_an_unknown_image_is_one_clear_error(site: Site, folder: str) -> None:
    del folder
    image = f"{site.stack['DEVSTACK_REGISTRY']}/tests/nothing:{uuid.uuid4().hex[:6]}"
    job = site.girder.ingest(image, expect=ERROR)
    log = "".join(job["log"])
    assert image in log
    assert "Traceback" not in log


def test_a_file_that_the_cluster_sees_is_mounted_not_downloaded(site: Site, folder: str) -> None:
    site.girder.call("PUT", "system/setting", params={"key": "worker.direct_path", "value": "true"})
    try:
        job = site.girder.wait_for_end(site.run_toy(folder, text="direct"))
    finally:
        site.girder.call("PUT", "system/setting", params={"key": "worker.direct_path", "value": "false"})
    assert job["status"] == SUCCESS, job["log"]
    assert site.girder.files(folder)["out.txt"] == b"text=<direct>\ninput=hello\n"
    [task] = wait_until(
        "its record is among the ended ones",
        lambda: [
            text
            for path in site.worker.root.glob("ended/*/task.json")
            if "mnt/girder_direct_worker" in (text := path.read_text())
        ],
    )
    assert site.stack["ASSETSTORE_DIR"] in task


def test_a_datalist_request_does_not_wait_in_slurm_s_queue(site: Site) -> None:
    cli = site.girder.cli(site.image, "Choice")
    answer = site.girder.session.post(
        f"{site.girder.api}/slicer_cli_web/cli/{cli}/datalist/choice", params={}, data="", timeout=60
    )
    assert answer.ok, answer.text
    assert "<element>red</element>" in answer.json()
    direct = [
        entries
        for entries in site.worker.entries().values()
        if any(entry.get("cluster") == "direct" for entry in entries)
    ]
    assert len(direct) == 1


def test_a_link_out_of_the_output_directory_is_not_followed(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, mode="escape"))
    assert "out.txt" not in site.girder.files(folder)
    assert job["status"] == ERROR


@pytest.mark.fault("very long log", phases=("running",))
def test_a_log_longer_than_girder_keeps_has_its_head_and_its_end(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, lines=400_000), seconds=120)
    log = "".join(job["log"])
    assert job["status"] == SUCCESS
    assert (
        log.index("line 1\n")
        < log.index("longer than Girder keeps")
        < log.index("line 400000\n")
        < log.index("toy ends")
    )
    assert len(log) < 4 * 1024**2
    task = wait_until(
        "its record is among the ended ones",
        lambda: next(
            (
                path
                for path in site.worker.root.glob("ended/*/girder.log")
                if "line 400000" in path.read_text()
            ),
            None,
        ),
    )
    whole = site.worker.stack.as_user(
        [str(Path(sys.executable).with_name("girder-slurm")), "log", task.parent.name]
    )
    env = site.stack.user_environment() | {"GIRDER_WORKER_SLURM_CONFIG": str(site.worker.config)}
    printed = subprocess.run(whole, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.count("line ") >= 400_000


@pytest.mark.fault("Girder away", phases=("running", "ended", "outputs uploading", "status reporting"))
def test_girder_s_absence_costs_nothing_but_time(site: Site, folder: str, slow: SlowLink) -> None:
    job = site.run_toy(folder, sleep=6)
    wait_until("it runs", lambda: "second 1" in site.girder.log(job), seconds=30)
    slow.is_cut = True
    slow.cut()
    slurm = site.worker.slurm_job_id(job)
    wait_until("Slurm has ended it", lambda: site.slurm_state(slurm) in ("COMPLETED", ""), seconds=30)
    slow.is_cut = False
    ended = site.girder.wait_for_end(job, seconds=90)
    log = "".join(ended["log"])
    assert ended["status"] == SUCCESS, log
    assert [line for line in log.splitlines() if line.startswith("second")] == [
        f"second {n}" for n in range(1, 7)
    ]
    assert site.girder.files(folder)["out.txt"] == b"text=<>\ninput=hello\n"


def test_a_link_in_a_directory_that_cannot_be_listed_is_not_followed(site: Site, folder: str) -> None:
    """A container can hide a link from a listing and still have it opened by name."""
    job = site.girder.wait_for_end(
        site.run_toy(folder, mode="hide", text=str(site.worker.root / "root.json"))
    )
    assert job["status"] == ERROR
    assert "out.txt" not in site.girder.files(folder)


def test_an_output_without_permissions_is_uploaded_all_the_same(site: Site, folder: str) -> None:
    job = site.girder.wait_for_end(site.run_toy(folder, mode="unreadable"))
    assert job["status"] == SUCCESS, job["log"]
    assert site.girder.files(folder)["out.txt"] == b"x\n"
