"""The probe job: what its report means, how it is watched, and that nothing of it is left."""

# ruff: noqa: S108 - paths that are only talked about
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from girder_worker_singularity.testing import FakeClock, FakeCommandRunner
from girder_worker_slurm.cluster.interface import JobDetail, SlurmJobId
from girder_worker_slurm.doctor.finding import Level
from girder_worker_slurm.doctor.probe import Probe, ProbeRules, render_probe
from girder_worker_slurm.doctor.probe_verdict import (
    ProbeFacts,
    Sighting,
    delay_seconds,
    judge_probe,
    parse_report,
)
from girder_worker_slurm.errors import SubmitUnsure
from girder_worker_slurm.options.partitions import parse_partitions
from girder_worker_slurm.records.event_delay import event_grace, grace_for
from girder_worker_slurm.settings import load_settings
from girder_worker_slurm.testing import FakeCluster

REPORT = {
    "node": "n1",
    "uid": "1000",
    "link": "yes",
    "sif": "yes",
    "tmpdir": "/tmp",
    "tmpdir_writable": "yes",
    "tmpdir_free_kb": "5000000",
    "apptainer": "apptainer version 1.4.5",
    "container_code": "0",
    "done": "yes",
}


def judge(facts: ProbeFacts, grace: float = 5.0):
    return list(
        judge_probe(
            facts, jobs_root=Path("/jobs"), sif=Path("/sif"), uid=1000, grace_seconds=grace, waited_seconds=60
        )
    )


def troubles(facts: ProbeFacts, grace: float = 5.0) -> dict[str, str]:
    return {
        finding.check: finding.level.value for finding in judge(facts, grace) if finding.level is not Level.OK
    }


def reported(**changes: str) -> ProbeFacts:
    return ProbeFacts("17", 100.0, [Sighting(101.0, 101.1)], report={**REPORT, **changes})


def detail(exit_code: int = 0, state: str = "FAILED") -> JobDetail:
    return JobDetail(SlurmJobId("17"), "t", state, "NonZeroExitCode", exit_code, 0, "n1", 0)


def test_a_node_that_sees_everything_is_fine():
    assert troubles(reported()) == {}


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({"uid": "1001"}, "jobs root on the node", "fail"),
        ({"link": "no"}, "jobs root on the node", "fail"),
        ({"sif": "no"}, "SIF directory on the node", "fail"),
        ({"logs": "no"}, "logs directory on the node", "fail"),
        ({"apptainer": "apptainer version 1.0.1"}, "Apptainer on the node", "fail"),
        ({"container_code": "255", "container_words": "FATAL: no"}, "container on the node", "fail"),
        ({"overlay_code": "255", "overlay_words": "FATAL: fuse2fs"}, "overlay on the node", "fail"),
        ({"tmpdir_writable": "no"}, "TMPDIR on the node", "warn"),
    ],
)
def test_what_is_wrong_on_a_node_is_named(changes, check, level):
    assert troubles(reported(**changes)) == {check: level}


def test_an_overlay_that_works_is_told_and_one_that_was_not_tried_is_not():
    assert "overlay on the node" in {finding.check for finding in judge(reported(overlay_code="0"))}
    assert "overlay on the node" not in {finding.check for finding in judge(reported())}


def test_apptainer_missing_on_a_node_fails_in_the_shells_words():
    report = {name: value for name, value in REPORT.items() if name != "apptainer"}
    facts = ProbeFacts("17", 100.0, report={**report, "apptainer_missing": "apptainer: command not found"})

    (finding,) = [finding for finding in judge(facts) if finding.level is Level.FAIL]

    assert "command not found" in finding.found


def test_paths_that_the_node_does_not_see_are_listed():
    facts = reported()
    facts.hidden_paths = ["/data"]

    assert troubles(facts) == {"direct paths on the node": "warn"}


@pytest.mark.parametrize(
    ("sightings", "after_end", "delay"),
    [
        ([], None, 0.0),
        ([Sighting(100.0, 100.1), Sighting(100.25, 100.3)], None, 0.05),
        # The node's clock is an hour behind: no part of the delay.
        ([Sighting(100.0, 3700.1), Sighting(101.0, 3701.1)], None, 0.0),
        ([Sighting(100.0, 130.0), Sighting(102.0, 130.0)], None, 2.0),
        ([Sighting(100.0, 100.1)], 28.0, 28.0),
    ],
)
def test_the_delay_is_measured_without_comparing_clocks(sightings, after_end, delay):
    facts = ProbeFacts(sightings=sightings, report_after_end=after_end)

    assert delay_seconds(facts) == pytest.approx(delay)


def test_a_late_file_system_wants_a_longer_grace():
    facts = reported()
    facts.report_after_end = 19.5

    assert grace_for(0.2) == 5
    assert "waits 59 s" in next(f.found for f in judge(facts) if f.check == "events of the node")
    assert troubles(facts, grace=60.0) == {}
    facts.not_kept = "[Errno 28] No space left on device"
    assert troubles(facts, grace=5.0) == {"events of the node": "warn"}
    assert "to 59" in next(f.remedy for f in judge(facts) if f.remedy)
    assert troubles(facts, grace=60.0) == {}


@pytest.mark.parametrize(("written", "way"), [(40.0, "60 s behind"), (190.0, "88 s ahead")])
def test_a_clock_that_is_off_is_a_warning(written, way):
    facts = reported()
    facts.sightings = [Sighting(written, 102.0)]

    (finding,) = [finding for finding in judge(facts) if finding.level is Level.WARN]

    assert way in finding.found


@pytest.mark.parametrize(
    ("facts", "level", "word"),
    [
        (ProbeFacts("17", state="FAILED", detail=detail(66)), "fail", "does not see /jobs"),
        (ProbeFacts("17", state="FAILED", detail=detail(73)), "fail", "cannot write"),
        (
            ProbeFacts("17", state="COMPLETED", detail=detail(0, "COMPLETED")),
            "fail",
            "nothing of it can be seen",
        ),
        (ProbeFacts("17", state="PENDING", reason="Resources"), "warn", "PENDING (Resources)"),
        (ProbeFacts("17", state="RUNNING", sightings=[Sighting(1, 2)]), "warn", "started"),
        (ProbeFacts("17"), "warn", "unknown to Slurm"),
    ],
)
def test_why_there_is_no_report(facts, level, word):
    (finding,) = judge(facts)

    assert finding.level.value == level
    assert word in finding.found


def test_a_report_is_read_line_by_line():
    assert parse_report("node=n1\nhidden=/a=b\nhidden=/c\nmissing=/atlas\nnonsense\n") == (
        {"node": "n1", "nonsense": ""},
        ["/a=b", "/c"],
        ["/atlas"],
    )


# -- the life of a probe


class Site:
    """A cluster, a clock whose sleeps let the node act, and the directories."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.acts: list = []
        site = self

        class NodeClock(FakeClock):
            def sleep(self, seconds: float) -> None:
                super().sleep(seconds)
                if site.acts:
                    site.acts.pop(0)()

        self.clock = NodeClock()
        self.cluster = FakeCluster(self.clock)
        environment = {
            "GIRDER_WORKER_SLURM_JOBS_ROOT": str(tmp_path / "a" / "jobs"),
            "SIF_IMAGE_PATH": str(tmp_path / "sif"),
            "GIRDER_WORKER_SINGULARITY_LOGS_DIR": str(tmp_path / "logs"),
        }
        self.settings = load_settings((), environment)

    def probe(self, *options: tuple[str, str], timeout: float = 60.0) -> list:
        rules = ProbeRules(options, timeout_seconds=timeout)
        self.made = Probe(self.settings, self.cluster, FakeCommandRunner(), self.clock, rules)
        return list(self.made.run())

    @property
    def job(self):
        return next(iter(self.cluster.jobs.values()))

    def beat(self, number: int = 0, *, seconds_ago: float = 0.0) -> None:
        (self.job.run / "spool" / f"beat.{number}").write_text(f"{self.clock.now() - seconds_ago:.6f}\n")

    def report(self, **more: str) -> None:
        lines = {**REPORT, "uid": str(os.geteuid()), **more}
        (self.job.run / "report").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def end(self, state: str, exit_code: int) -> None:
        self.job.state, self.job.exit_code = state, exit_code

    def cancels(self) -> list:
        return [call for call in self.cluster.calls if call[0] == "cancel"]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_a_good_probe_leaves_nothing_and_cancels_nothing(site):
    site.acts = [site.beat, site.report]

    found = site.probe(("partition", "normal"))

    assert {finding.level for finding in found} == {Level.OK}
    assert list(site.path.iterdir()) == []
    assert site.cancels() == []
    assert dict(site.job.submission.options) == {"partition": "normal"}


def test_the_name_of_the_probe_is_never_that_of_a_workers_job(site):
    site.acts = [site.report]
    site.probe()

    assert site.job.token.startswith("gw-doctor-")


def test_a_refusal_is_told_in_slurms_words(site):
    (finding,) = site.probe(("partition", "none"))

    assert finding.level is Level.FAIL
    assert "invalid partition" in finding.found
    assert list(site.path.iterdir()) == []


def test_a_probe_that_does_not_start_in_time_is_cancelled(site):
    (finding,) = site.probe(timeout=30.0)

    assert finding.level is Level.WARN
    assert "PENDING" in finding.found
    assert site.cancels()
    assert list(site.path.iterdir()) == []


def test_ctrl_c_cancels_and_cleans(site):
    def interrupt():
        raise KeyboardInterrupt

    site.acts = [site.beat, interrupt]

    with pytest.raises(KeyboardInterrupt):
        site.probe()
    assert site.cancels()
    assert list(site.path.iterdir()) == []


def test_an_unsure_submission_is_cancelled_by_its_name(site):
    def unsure(_submission):
        raise SubmitUnsure("sbatch did not answer")

    site.cluster.submit = unsure

    (finding,) = site.probe()

    assert finding.level is Level.FAIL
    assert site.made.token in str(site.cancels())


def test_a_node_without_the_directory_is_known_as_soon_as_the_job_has_ended(site):
    site.acts = [lambda: site.end("FAILED", 66)]

    (finding,) = site.probe(timeout=600.0)

    assert "does not see" in finding.found
    assert site.clock.monotonic() < 1000.0 + 10
    assert site.cancels() == []


def test_a_report_that_comes_late_after_the_end_is_measured(site):
    site.acts = [site.beat, lambda: site.end("COMPLETED", 0), *[lambda: None] * 300, site.report]

    found = site.probe()

    assert {finding.level for finding in found} == {Level.OK}
    assert 80 < event_grace(site.settings.jobs_root, 5.0) < 100
    assert [path.name for path in site.settings.jobs_root.iterdir()] == ["event-delay.json"]


def test_files_that_come_after_the_report_count_for_how_late_they_are(site):
    """A mount shows a name at once that was not asked for before, and in a listing that it remembers late."""
    late = [lambda: None] * 200
    site.acts = [lambda: site.report(beats="3"), *late, lambda: site.beat(0, seconds_ago=19.9)]
    site.acts += [lambda number=number: site.beat(number) for number in (1, 2)]

    (finding,) = [finding for finding in site.probe() if finding.check == "events of the node"]

    assert "after 19.9 s at most (3 tried)" in finding.found
    assert "waits 60 s" in finding.found
    assert event_grace(site.settings.jobs_root, 5.0) == 60.0
    assert event_grace(site.settings.jobs_root, 90.0) == 90.0


def test_files_that_never_come_are_given_up(site):
    site.acts = [lambda: site.report(beats="2"), site.beat]

    (finding,) = [finding for finding in site.probe() if finding.check == "events of the node"]

    assert "s at least (1 tried)" in finding.found
    assert event_grace(site.settings.jobs_root, 5.0) > 200


def test_what_was_measured_before_is_forgotten_when_the_files_come_in_time(site):
    file = site.settings.jobs_root / "event-delay.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"seconds": 30.0}\n')
    assert event_grace(site.settings.jobs_root, 5.0) == 90.0
    site.acts = [site.beat, site.report]
    site.probe()
    assert not file.exists()
    assert event_grace(site.settings.jobs_root, 5.0) == 5.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seconds": "x"}', '{"seconds": 1e999}', "\xff"])
def test_a_measure_that_makes_no_sense_leaves_the_setting(tmp_path, text):
    (tmp_path / "event-delay.json").write_bytes(text.encode("latin-1"))

    assert event_grace(tmp_path, 7.0) == 7.0


def test_what_was_there_before_stays(site):
    (site.path / "sif").mkdir()
    (site.path / "sif" / "image.sif").write_text("x")
    (site.path / "a" / "jobs" / "tmp").mkdir(parents=True)
    site.acts = [site.report]

    site.probe()

    assert sorted(str(path.relative_to(site.path)) for path in site.path.rglob("*")) == [
        "a",
        "a/jobs",
        "a/jobs/tmp",
        "sif",
        "sif/image.sif",
    ]


def test_the_script_quotes_every_value_and_is_good_bash(tmp_path):
    text = render_probe(
        directory="/jobs/it's $(here)",
        nonce="n",
        sif_note="/sif/a b",
        logs_directory="",
        apptainer="apptainer",
        tiny_sif="",
        direct_paths=("/data one", "/data;two"),
        sbatch_head=("#SBATCH --mem=1G",),
    )
    script = tmp_path / "probe.slurm"
    script.write_text(text)

    assert text.startswith("#!/bin/bash\n#SBATCH --mem=1G\n")
    assert """directory='/jobs/it'"'"'s $(here)'""" in text
    assert subprocess.run(["bash", "-n", str(script)], timeout=30).returncode == 0


def test_a_value_with_a_line_break_stands_in_no_script():
    with pytest.raises(ValueError, match="job script"):
        render_probe(
            directory="/a\nb",
            nonce="n",
            sif_note="",
            logs_directory="",
            apptainer="apptainer",
            tiny_sif="",
            direct_paths=(),
        )


def test_the_partition_in_the_head_decides_whether_the_probe_asks_for_memory():
    """As for jobs: the probe was refused where they ran."""
    listing = (
        "PartitionName=normal Default=YES MaxTime=UNLIMITED TotalNodes=4 TRES=cpu=4,mem=4G,node=4\n"
        "PartitionName=plain Default=NO MaxTime=UNLIMITED TotalNodes=4 TRES=cpu=4,mem=4M,node=4\n"
    )
    rules = ProbeRules((("mem", "8G"),), partitions=lambda: parse_partitions(listing))
    assert rules.options() == (("mem", "8G"),)
    assert rules.options(("#SBATCH --partition=plain",)) == ()
