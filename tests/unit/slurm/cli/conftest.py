"""A jobs root as a worker leaves it, and the command line on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from girder_worker_slurm.cli import cli
from girder_worker_slurm.records.jobs_root import JobsRoot
from girder_worker_slurm.records.record import Record

if TYPE_CHECKING:
    from pathlib import Path

WORKER = "worker-1"
GIRDER_TOKEN = "girder-token-" + "s" * 20
NONCE = "nonce-" + "n" * 20


@dataclass
class JobsOnDisk:
    """Makes records and runs commands."""

    root: JobsRoot
    environment: dict[str, str | None] = field(default_factory=dict)

    def job(
        self, task_id: str, *events: tuple[str, dict[str, Any]], girder_id: str = "", title: str = ""
    ) -> Record:
        """A record with these entries; with a Girder id it has been admitted."""
        message = {
            "task_id": task_id,
            "task": "some.task",
            "headers": {"token": GIRDER_TOKEN},
            "properties": {},
        }
        record = Record.create(self.root.records, message, worker_id=WORKER, at=1_700_000_000.0)
        assert record is not None
        if girder_id:
            url = f"http://girder/api/v1/job/{girder_id}"
            user = {"id": "5f01", "login": "ada"}
            girder = {"url": url, "token": GIRDER_TOKEN, "title": title}
            record.append("admitted", kind="container", image="org/image:1", girder=girder, user=user)
        for name, fields in events:
            record.append(name, **fields)
        return record

    def submitted(self, task_id: str, *, girder_id: str, slurm_job_id: str, title: str = "") -> Record:
        """A job in Slurm."""
        return self.job(
            task_id,
            ("attempt", attempt(task_id)),
            ("staged", {}),
            ("rendered", {}),
            ("intent", {}),
            ("submitted", {"slurm_job_id": slurm_job_id, "at": 1_700_000_010.0}),
            girder_id=girder_id,
            title=title,
        )

    def ended(self, task_id: str, *, outcome: str = "success", girder_id: str = "66aa") -> Record:
        """A job that has gone all the way."""
        record = self.submitted(task_id, girder_id=girder_id, slurm_job_id="99")
        record.append("verdict", outcome=outcome, code="x", sentence="This is how it ended.")
        record.append("closed", at=1_700_000_100.0)
        self.root.end(record)
        return record

    def run(self, *arguments: str, stdin: str = "") -> Result:
        """What a command answers."""
        return CliRunner().invoke(cli, list(arguments), env=self.environment, input=stdin)

    def json(self, *arguments: str) -> Any:
        """What a command answers to machines."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def attempt(task_id: str, log_path: str = "") -> dict[str, Any]:
    return {"number": 1, "token": f"gw-abc-{task_id}", "nonce": NONCE, "log_path": log_path}


@pytest.fixture
def jobs(tmp_path: Path) -> JobsOnDisk:
    root = JobsRoot(tmp_path / "jobs", WORKER)
    root.prepare()
    environment: dict[str, str | None] = {
        "GIRDER_WORKER_SLURM_JOBS_ROOT": str(root.path),
        "GIRDER_WORKER_SLURM_CONFIG": None,
        "GIRDER_WORKER_BROKER": "memory://",
        "CELERY_BROKER_URL": None,
    }
    return JobsOnDisk(root, environment)
