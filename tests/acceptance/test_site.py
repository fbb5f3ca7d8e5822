"""What a site sets up for itself: its own submit script, several workers on one root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.girder_site import ERROR, SUCCESS, wait_until
from tests.support.toy_cli import push_toy_cli
from tests.support.worker import Worker

if TYPE_CHECKING:
    from tests.acceptance.conftest import Site

pytestmark = [pytest.mark.girder, pytest.mark.timeout(300)]

_SCRIPT = """#!/bin/bash
#SBATCH --comment=from-the-site
#SBATCH --job-name=ignored
module load apptainer 2>/dev/null
echo "site before"
apptainer exec "$@"
code=$?
echo "site after $code"
exit $code
"""


def _use_site_script(site: Site) -> None:
    """Starts the worker anew with the site's own submit script."""
    script = site.worker.root / "site" / "singularity.slurm"
    script.parent.mkdir(exist_ok=True)
    script.parent.chmod(0o755)
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    site.worker.stop()
    site.worker.environment = {"GIRDER_WORKER_SLURM_SUBMIT_SCRIPT": str(script)}
    site.worker.start()


def test_a_site_s_own_submit_script_keeps_working(site: Site, folder: str) -> None:
    _use_site_script(site)
    job = site.run_toy(folder, text="through the site's script", sleep=1)
    ended = site.girder.wait_for_end(job)
    log = "".join(ended["log"])
    assert ended["status"] == SUCCESS, log
    assert log.index("site before") < log.index("toy starts in /opt/toy") < log.index("site after 0")
    assert site.girder.files(folder)["out.txt"] == b"text=<through the site's script>\ninput=hello\n"
    detail = site.slurm("scontrol", "show", "job", site.worker.slurm_job_id(job))
    assert "Comment=from-the-site" in detail
    assert "JobName=gw-" in detail


def test_a_site_script_s_exit_code_is_the_job_s(site: Site, folder: str) -> None:
    _use_site_script(site)
    ended = site.girder.wait_for_end(site.run_toy(folder, code=7))
    assert "exit code 7" in "".join(ended["log"])


def test_an_image_that_the_site_denies_ends_the_job_though_its_sif_is_there(site: Site, folder: str) -> None:
    site.worker.restart("[singularity]\ndeny_images = */tests/toy:*\n")
    ended = site.girder.wait_for_end(site.run_toy(folder))
    assert ended["status"] == ERROR
    assert "`deny_images`" in "".join(ended["log"])


def test_a_site_without_a_way_out_runs_what_is_in_its_store_and_nothing_else(site: Site, folder: str) -> None:
    site.worker.restart("[singularity]\npull_policy = never\n")
    assert site.girder.wait_for_end(site.run_toy(folder))["status"] == SUCCESS
    job = site.girder.ingest(push_toy_cli(site.stack["DEVSTACK_REGISTRY"], "tests/never:1"), expect=ERROR)
    assert "There is no SIF of" in "".join(job["log"])


def test_an_image_comes_through_the_site_s_mirror(site: Site) -> None:
    registry = site.stack["DEVSTACK_REGISTRY"]
    push_toy_cli(registry, "mirror/tests/toy:1")
    site.worker.restart(f"[singularity.registry_map]\nregistry.invalid = {registry}/mirror\n")
    image = "registry.invalid/tests/toy:1"
    site.girder.ingest(image)
    assert site.girder.cli(image, "Toy")
    assert (site.worker.sif / "registry.invalid_tests_toy_1.sif").exists()


@pytest.mark.fault("second worker takes over", phases=("submitted", "running"))
def test_a_second_worker_takes_over_and_the_first_may_come_back(site: Site, folder: str) -> None:
    """The jobs of a killed worker go on under another; when it comes back it leaves them alone."""
    site.worker.stop()
    root = site.worker.root.with_name(f"{site.worker.root.name}-two")
    first = Worker(site.stack, root, site.worker.sif, name="alpha").start()
    second = Worker(site.stack, root, site.worker.sif, name="beta")
    try:
        jobs = [site.run_toy(folder, sleep=25) for _ in range(4)]
        for job in jobs:
            wait_until("it runs", lambda job=job: "second 1" in site.girder.log(job), seconds=40)
        first.kill()
        second.start()
        wait_until(
            "the second worker owns them",
            lambda: len(list(root.glob("record/*/owner.2"))) == len(jobs),
            seconds=60,
        )
        first.start()
        ended = [site.girder.wait_for_end(job, seconds=90) for job in jobs]
        for job in ended:
            log = "".join(job["log"])
            assert job["status"] == SUCCESS, log
            assert log.count("toy starts") == log.count("toy ends") == log.count("second 9\n") == 1
        assert len([name for name in site.girder.files(folder) if name.startswith("out.txt")]) == len(jobs)
    finally:
        first.stop()
        second.stop()


@pytest.mark.parametrize(
    ("extra", "broker", "words"),
    [
        ("", "amqp://girder:wrong@{place}//", "Correct user, password"),
        ("[slurm.options]\noutput = /tmp/x\n", "", "sets `output`, which only the worker itself may"),
        ("[slurm]\nnonsense = 1\n", "", "unknown setting `nonsense`"),
        ("[singularity.registry_map]\ndocker.io = nohost\n", "", "registry_map"),
        ("[slurm]\nsubmit_script = /nowhere/x.slurm\n", "", "/nowhere/x.slurm"),
    ],
)
def test_a_mistake_of_the_site_stops_the_start_with_one_line(
    site: Site, extra: str, broker: str, words: str
) -> None:
    good = site.stack["GIRDER_WORKER_BROKER"]
    config = site.worker.root / "site" / "mistake.cfg"
    config.parent.mkdir(exist_ok=True)
    config.parent.chmod(0o755)
    config.write_text(f"[jobs]\nroot = {site.worker.root}-mistake\n{extra}")
    config.chmod(0o644)
    done = subprocess.run(
        site.stack.as_user([str(Path(sys.executable).with_name("girder-slurm")), "worker"]),
        env=site.stack.user_environment()
        | {
            "GIRDER_WORKER_SLURM_CONFIG": str(config),
            "GIRDER_WORKER_BROKER": broker.format(place=good.split("@")[1].strip("/")) or good,
            "GIRDER_WORKER_BACKEND": site.stack["GIRDER_WORKER_BACKEND"],
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "wrong@" not in done.stderr
