"""What is looked at on this machine: settings, directories, workers, broker, Girder, Slurm, Apptainer."""

# ruff: noqa: S108 - paths that are only talked about

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from girder_worker_singularity.command_runner import CommandResult, LocalCommandRunner
from girder_worker_singularity.holder import Holder
from girder_worker_singularity.lease import Lease
from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from girder_worker_slurm.doctor import apptainer, configuration, directories, gpus, slurm
from girder_worker_slurm.doctor.broker import check_broker, judge_queue
from girder_worker_slurm.doctor.broker_connection import QueueFacts
from girder_worker_slurm.doctor.checklist import start_checks
from girder_worker_slurm.doctor.directories import DirectoryFacts, file_system_of, judge_directory, look_at
from girder_worker_slurm.doctor.finding import Finding, Level
from girder_worker_slurm.doctor.girder_server import check_girder, has_plugin, judge_version
from girder_worker_slurm.doctor.workers import judge_workers, workers_of
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.settings import Settings, load_settings
from tests.unit.slurm.http_girder import Mishap, http_girder


def levels(findings) -> list[str]:
    return [finding.level.value for finding in findings]


def settings_with(root: Path, **environment: str) -> Settings:
    return load_settings((), {"GIRDER_WORKER_SLURM_JOBS_ROOT": str(root), **environment})


# -- settings


def test_a_wrong_setting_is_a_finding_with_file_and_line(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[jobs]\nroot = /jobs\nrooot = /jobs\n")

    finding = configuration.read_settings((file,), {})

    assert isinstance(finding, Finding)
    assert finding.level is Level.FAIL
    assert f"{file}:3" in finding.found


def test_a_wrong_line_is_shown_without_the_password_in_it(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[celery]\nbroker: amqp://girder:topsecret@host/\n")

    finding = configuration.read_settings((file,), {})

    assert isinstance(finding, Finding)
    assert "topsecret" not in str(finding)


def test_no_jobs_root_at_all_is_a_finding():
    assert isinstance(configuration.read_settings((), {}), Finding)


def test_no_file_is_a_warning_and_a_file_is_not(tmp_path):
    file = tmp_path / "worker.local.cfg"
    file.write_text("[jobs]\nroot = /jobs\n")

    assert levels(configuration.check_settings((), {})) == ["warn"]
    assert levels(configuration.check_settings((file,), {})) == ["ok"]


def test_a_generic_variable_is_a_warning_that_names_it():
    found = list(configuration.check_settings((), {"TMPDIR": "/scratch"}))

    assert any("TMPDIR" in finding.found and "`root` in [jobs]" in finding.remedy for finding in found)


@pytest.mark.parametrize(
    ("broker", "mode", "expected"),
    [
        ("amqp://me:word@host/", 0o644, ["ok", "warn"]),
        ("amqp://me:word@host/", 0o600, ["ok"]),
        ("amqp://guest:guest@host/", 0o644, ["ok"]),
        ("amqp://host/", 0o644, ["ok"]),
    ],
)
def test_a_readable_file_with_a_password_is_a_warning(tmp_path, broker, mode, expected):
    file = tmp_path / "worker.local.cfg"
    file.write_text(f"[celery]\nbroker = {broker}\n")
    file.chmod(mode)

    assert levels(configuration.check_settings((file,), {})) == expected


# -- directories

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


# -- start


def test_start_is_allowed_where_all_is_here_and_makes_the_directories(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "apptainer"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))

    assert start_checks(settings_with(tmp_path / "jobs"), os.environ, LocalCommandRunner()) == []
    assert (tmp_path / "jobs" / "sif").is_dir()
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700


def test_start_is_refused_for_each_thing_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").write_text("")

    found = start_checks(
        settings_with(tmp_path / "jobs", SIF_IMAGE_PATH=str(tmp_path / "file" / "sif")),
        os.environ,
        LocalCommandRunner(),
    )

    assert [finding.check for finding in found] == [
        slurm.COMMANDS,
        apptainer.PROGRAM,
        apptainer.SIF_DIRECTORY,
    ]
    assert all(finding.remedy for finding in found)


# -- workers


def test_a_worker_of_this_machine_is_seen_at_once(tmp_path):
    (tmp_path / "workers").mkdir()
    clock = FakeClock()
    lease = Lease.acquire(tmp_path / "workers" / "w1", Holder.this_process("w1"), clock)

    (seen,) = workers_of(tmp_path, clock)

    assert (seen.worker_id, seen.is_running) == ("w1", True)
    assert clock.slept == []
    lease.release()
    assert workers_of(tmp_path, clock) == []


class RefreshingClock(FakeClock):
    """While somebody waits, another worker counts up."""

    def __init__(self, *leases: Lease) -> None:
        super().__init__()
        self._leases = leases

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        for lease in self._leases:
            lease.refresh()


def test_a_worker_elsewhere_runs_if_its_lease_moves(tmp_path):
    (tmp_path / "workers").mkdir()
    leases = [
        Lease.acquire(tmp_path / "workers" / name, Holder("elsewhere", "boot", "ns", 7, 8, name), FakeClock())
        for name in ("w1", "w2")
    ]

    seen = workers_of(tmp_path, RefreshingClock(leases[0]))

    assert [(worker.worker_id, worker.is_running) for worker in seen] == [("w1", True), ("w2", False)]
    assert levels(judge_workers(seen)) == ["ok", "warn"]
    assert levels(judge_workers([])) == ["ok"]


# -- broker


@pytest.mark.parametrize(
    ("queue", "running", "expected"),
    [
        (None, 0, "warn"),
        (QueueFacts(3, 0), 0, "ok"),
        (QueueFacts(0, 1), 1, "ok"),
        (QueueFacts(0, 1), 0, "warn"),
        (QueueFacts(0, 2), 1, "warn"),
        (QueueFacts(9, 0), 1, "warn"),
    ],
)
def test_who_takes_from_a_queue_is_compared_with_who_should(queue, running, expected):
    assert levels(judge_queue("celery", queue, running)) == [expected]


def test_another_consumer_is_named_as_such():
    (finding,) = judge_queue("celery", QueueFacts(0, 1), 0)

    assert "1 more takes tasks" in finding.found
    assert "`worker`" in finding.remedy


def test_a_broker_that_is_not_there_fails_without_the_password(tmp_path):
    settings = settings_with(tmp_path, GIRDER_WORKER_BROKER="amqp://me:topsecret@127.0.0.1:1//")

    (finding,) = check_broker(settings, running_workers=0, timeout_seconds=1.0)

    assert finding.level is Level.FAIL
    assert "127.0.0.1:1" in finding.found
    assert "topsecret" not in str(finding)


# -- Girder


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, {"release": "5.0.21"}, "ok"),
        (200, {"release": "3.2.0"}, "warn"),
        (200, None, "fail"),
        (404, {"message": "no"}, "fail"),
        (200, [], "fail"),
    ],
)
def test_only_girder_5_is_girder_as_it_should_be(status, answer, expected):
    assert levels(judge_version("http://girder/api/v1", status, answer)) == [expected]


def test_girder_is_asked_only_if_its_address_is_set():
    assert levels(check_girder("", timeout_seconds=1)) == ["ok"]
    assert levels(check_girder("http://127.0.0.1:1/api/v1", timeout_seconds=1)) == ["fail"]


def test_the_plugin_of_the_server_is_noticed_without_a_token():
    with http_girder() as girder:
        assert levels(check_girder(girder.url, timeout_seconds=5)) == ["ok"]
        girder.plugin = {}
        girder_itself, plugin = check_girder(girder.url, timeout_seconds=5)
        girder.mishaps.append(Mishap("GET", "/worker_slurm/options"))
        assert has_plugin(girder.url, timeout_seconds=5) is None
    assert (girder_itself.level.value, plugin.level.value) == ("ok", "ok")
    assert "plugin worker_slurm" in plugin.found


# -- Slurm


def answer(stdout: str = "", stderr: str = "", returncode: int = 0) -> CommandResult:
    return CommandResult(("x",), returncode, stdout, stderr)


@pytest.mark.parametrize(
    ("version", "ping", "expected"),
    [
        ("slurm 22.05.8", "Slurmctld(primary) at vm is UP", "ok"),
        ("slurm-wlm 25.11.1", "Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP", "ok"),
        ("slurm 20.11.9", "Slurmctld(primary) at vm is UP", "warn"),
        ("slurm 22.05.8", "Slurmctld(primary) at vm is DOWN", "fail"),
        ("slurm 22.05.8", "", "fail"),
    ],
)
def test_the_controller_has_to_answer(version, ping, expected):
    assert levels(slurm.judge_controller(answer(version), answer(ping))) == [expected]


PARTITIONS = """\
PartitionName=normal AllowGroups=ALL Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=old AllowGroups=ALL Default=NO MaxTime=UNLIMITED State=DRAIN
"""


@pytest.mark.parametrize(
    ("wanted", "listing", "has_script", "expected"),
    [
        ("", PARTITIONS, False, ["ok", "ok"]),
        ("normal", PARTITIONS, False, ["ok"]),
        ("normal,old", PARTITIONS, False, ["ok", "warn"]),
        ("gpu", PARTITIONS, False, ["fail"]),
        ("", PARTITIONS.replace("YES", "NO"), False, ["fail"]),
        ("", PARTITIONS.replace("YES", "NO"), True, ["ok"]),
    ],
)
def test_jobs_need_a_partition_that_is_up(wanted, listing, has_script, expected):
    assert levels(slurm.judge_partition(wanted, listing, has_script=has_script)) == expected


GOOD = {
    "MinJobAge": "300 sec",
    "MaxJobCount": "10000",
    "SelectTypeParameters": "CR_CORE_MEMORY",
    "TaskPlugin": "task/affinity,task/cgroup",
    "DefMemPerNode": "UNLIMITED",
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"MinJobAge": "10 sec"}, "MinJobAge"),
        ({"MaxJobCount": "5000"}, "MaxJobCount"),
        ({"SelectTypeParameters": "CR_CPU"}, "not handed out"),
        ({"TaskPlugin": "task/affinity"}, "does not hold jobs"),
        ({"ConstrainRAMSpace": "no"}, "does not hold jobs"),
        ({"TaskPlugin": "task/none", "JobAcctGatherParams": "OverMemoryKill"}, ""),
        ({"DefMemPerCPU": "64"}, "64 MB per CPU"),
    ],
)
def test_what_of_the_configuration_will_surprise(changes, word):
    found = list(slurm.judge_configuration({**GOOD, **changes}, (), max_submitted=5000, has_script=False))

    assert [word in finding.found for finding in found] == ([True] if word else [])


def test_little_default_memory_does_not_matter_where_memory_is_asked_for():
    assert not list(
        slurm.judge_configuration(
            {**GOOD, "DefMemPerCPU": "64"}, (("mem", "8G"),), max_submitted=10, has_script=False
        )
    )


def test_slurm_commands_are_asked_in_the_configured_directory():
    runner = FakeCommandRunner({"/opt/slurm/bin/scontrol": FakeAnswer(stdout=PARTITIONS)})
    questions = slurm.SlurmQuestions(runner, Path("/opt/slurm/bin"), timeout_seconds=5)

    assert levels(slurm.check_partition(questions, (("p", "normal"),), has_script=False)) == ["ok"]
    assert runner.calls[0].timeout_seconds == 5


# -- Apptainer


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


# -- GPUs


def gpu_findings(tmp_path, answer, config=""):
    file = tmp_path / "worker.cfg"
    file.write_text(f"[jobs]\nroot = {tmp_path}\n{config}")
    runner = FakeCommandRunner({"sbatch": answer})
    questions = slurm.SlurmQuestions(runner, None, timeout_seconds=5)
    settings = load_settings((file,), {})
    return list(gpus.check_gpus(questions, settings, (("mem", "1G"),))), runner


def test_slurm_is_asked_whether_it_would_take_a_job_with_a_gpu(tmp_path):
    config = "[slurm.gpu_options]\ngres = gpu:a100:{gpus}\npartition = gpu\n"
    findings, runner = gpu_findings(tmp_path, FakeAnswer(0, ""), config)
    assert levels(findings) == ["ok"]
    argv = runner.calls[0].argv
    assert argv[:2] == ("sbatch", "--test-only")
    assert {"--mem=1G", "--gres=gpu:a100:1", "--partition=gpu"} <= set(argv)


@pytest.mark.parametrize(
    ("config", "level", "remedy"),
    [
        ("", "warn", "gpu_kind = none"),
        ("[slurm.gpu_options]\npartition = gpus\n", "fail", "Correct [slurm.gpu_options]"),
    ],
)
def test_a_refusal_of_gpus_is_told_in_slurm_s_words(tmp_path, config, level, remedy):
    refusal = FakeAnswer(1, "", "sbatch: error: invalid partition specified: gpus\n")
    (finding,) = gpu_findings(tmp_path, refusal, config)[0]
    assert finding.level.value == level
    assert "invalid partition specified: gpus" in finding.found
    assert remedy in finding.remedy


def test_a_site_without_gpus_asks_nothing(tmp_path):
    findings, runner = gpu_findings(tmp_path, FakeAnswer(1, ""), "[singularity]\ngpu_kind = none\n")
    assert (findings, runner.calls) == ([], [])


def test_the_head_of_the_site_s_script_counts(tmp_path):
    script = tmp_path / "submit.sh"
    script.write_text("#!/bin/bash\n#SBATCH --gres=gpu:2\nmodule load x\n")
    findings, runner = gpu_findings(tmp_path, FakeAnswer(0, ""), f"[slurm]\nsubmit_script = {script}\n")
    assert levels(findings) == ["ok"]
    assert not [word for word in runner.calls[0].argv if word.startswith("--gres")]
    assert runner.calls[0].stdin == "#!/bin/sh\n#SBATCH --gres=gpu:2\ntrue\n"
