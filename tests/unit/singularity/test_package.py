from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import girder_worker_singularity

PACKAGE = Path(girder_worker_singularity.__file__).parent


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


def test_every_public_name_exists():
    for name in girder_worker_singularity.__all__:
        assert hasattr(girder_worker_singularity, name)


def test_only_the_command_runner_starts_processes_and_only_the_clock_reads_time():
    for path in PACKAGE.glob("*.py"):
        assert ("subprocess" in imports(path)) == (path.name == "command_runner.py")
        assert ("time" in imports(path)) == (path.name == "clock.py")


def test_nothing_here_knows_a_cluster_or_girder():
    for path in PACKAGE.glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {
            "girder_worker_slurm",
            "girder_worker",
            "girder",
            "celery",
        }


def test_importing_the_package_loads_no_docker():
    script = "import sys, girder_worker_singularity; sys.exit('docker' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
