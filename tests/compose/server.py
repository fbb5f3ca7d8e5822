"""The server's side as an administrator has it: a checkout, its .env, and docker compose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.girder_site import GirderSite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.stack import Stack

REPOSITORY = Path(__file__).parents[2]
_PARTS = (
    "docker-compose.yaml",
    ".dockerignore",
    "docker",
    "worker",
    "worker.dist.cfg",
    "girder_worker_slurm",
    "girder_worker_singularity",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


@dataclass
class ComposeServer:
    """One deployment."""

    checkout: Path
    #: DOCKER_HOST, DOCKER_CONFIG and PATH.
    docker: Mapping[str, str]

    @classmethod
    def unpack(cls, directory: Path, docker: Mapping[str, str]) -> ComposeServer:
        """A new checkout without .env."""
        for name in _PARTS:
            source = REPOSITORY / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "venv", "*.local.cfg")
                shutil.copytree(source, directory / name, ignore=ignored)
            else:
                shutil.copy(source, directory / name)
        return cls(directory, docker)

    def run(
        self, *argv: str, check: bool = True, seconds: float = 240, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """A command in the checkout, standard error among the output; a failure shows what it said."""
        done = subprocess.run(
            argv,
            cwd=self.checkout,
            env=dict(self.docker),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout[-6000:]}"
        return done

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`docker compose ...`."""
        return self.run("docker", "compose", *arguments, **options)

    def up(
        self, *arguments: str, check: bool = True, seconds: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose up -d --wait`; a failure shows what is wrong with which service."""
        done = self.compose("up", "-d", "--wait", *arguments, check=False, seconds=seconds)
        if check and done.returncode != 0:
            raise AssertionError(f"{done.stdout[-3000:]}\n{self.check().stdout}")
        return done

    def check(self) -> subprocess.CompletedProcess[str]:
        """docker/check.sh."""
        return self.run("docker/check.sh", check=False)

    def variables(self) -> dict[str, str]:
        """What .env says."""
        lines = (self.checkout / ".env").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def set(self, **values: str) -> None:
        """Changes .env; an empty value takes the variable out."""
        lines = (self.checkout / ".env").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in values]
        new = [f"{name}={value}" for name, value in values.items() if value]
        (self.checkout / ".env").write_text("\n".join([*kept, *new, ""]), encoding="utf-8")

    def passwords(self) -> set[str]:
        """All that is secret in .env."""
        return {value for name, value in self.variables().items() if name.endswith("PASSWORD")}

    def containers(self) -> dict[str, dict[str, Any]]:
        """What `docker inspect` says: service → container."""
        ids = self.compose("ps", "--all", "--quiet").stdout.split()
        found = json.loads(self.run("docker", "inspect", *ids).stdout)
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}

    def port(self, name: str) -> int:
        """Where a service is published."""
        return int(self.variables()[f"{name}_PORT"])

    def stack(self, cluster: Stack) -> Stack:
        """That stack's Slurm, Apptainer and registry, with the Girder and the broker of this server."""
        env = self.variables()
        account = f"{env['RABBITMQ_USER']}:{env['RABBITMQ_PASSWORD']}@127.0.0.1:{env['RABBITMQ_PORT']}/"
        url = f"http://127.0.0.1:{env['GIRDER_PORT']}"
        here = {
            "GIRDER_URL": url,
            "GIRDER_API_URL": f"{url}/api/v1",
            "GIRDER_ADMIN_LOGIN": env["GIRDER_ADMIN_LOGIN"],
            "GIRDER_ADMIN_PASSWORD": env["GIRDER_ADMIN_PASSWORD"],
            "GIRDER_WORKER_BROKER": f"amqp://{account}",
            "GIRDER_WORKER_BACKEND": f"rpc://{account}",
        }
        return replace(cluster, env={**cluster.env, **here})

    def girder(self, cluster: Stack) -> GirderSite:
        """Its Girder, logged in as the administrator."""
        return GirderSite(self.stack(cluster)).login()


def said(output: str) -> str:
    """What a program printed, without colours and line breaks, to look for words in it."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", output))
