"""The jobs by which the doctor tries other Unix users."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from girder_worker_singularity.command_runner import CommandResult
from girder_worker_singularity.testing import FakeClock
from girder_worker_slurm.cluster.run_as import RunAs
from girder_worker_slurm.cluster.run_directory import RunDirectories
from girder_worker_slurm.doctor.unix_users import UnixUserSite, check_unix_users
from girder_worker_slurm.settings import load_settings
from girder_worker_slurm.testing import FakeCluster
from girder_worker_slurm.users.unix_users import UnixUserRules

QUEUE_SECONDS = 60.0


class Runs(RunDirectories):
    """Those of this very user, whoever is asked for."""

    def can_enter(self, path: Path) -> bool:
        return path.is_dir()


def test_a_job_that_waits_in_the_queue_is_asked_for_now_and_then(tmp_path):
    mapping = tmp_path / "users.yaml"
    mapping.write_text("users:\n- login: ada\n  unix_user: nobody\n")
    clock = FakeClock()
    cluster = FakeCluster(clock)
    site = UnixUserSite(
        load_settings(
            (), {"GIRDER_WORKER_SLURM_USERS": str(mapping), "GIRDER_WORKER_SLURM_JOBS_ROOT": str(tmp_path)}
        ),
        UnixUserRules(("nobody",)),
        lambda _user: Runs(tmp_path / "nobody"),
        RunAs(is_root=True),
        SimpleNamespace(ask=lambda *argv, **_: CommandResult(argv, 0, "", "")),
        cluster,
        clock,
        (),
        QUEUE_SECONDS,
        with_probe=True,
    )
    (finding,) = check_unix_users(site)
    assert "did not start within 60 s" in finding.found
    asked = [what for method, what in cluster.calls if method == "find"]
    assert 0 < len(asked) <= QUEUE_SECONDS / 2
