"""Who may import whom, and which module alone touches processes and time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import girder_worker_slurm

REPOSITORY = Path(__file__).parents[1]
#: Where the product is that is tested: the checkout, or an environment into which the wheel was installed.
INSTALLED = Path(girder_worker_slurm.__file__).parents[1]
PACKAGES = ("girder_worker_slurm", "girder_worker_singularity")
COMMAND_RUNNER = "girder_worker_singularity/command_runner.py"
CLOCK = "girder_worker_singularity/clock.py"


def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module of the product, by its path."""
    return {
        str(path.relative_to(INSTALLED)): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((INSTALLED / package).rglob("*.py"))
    }


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def called(tree: ast.Module) -> set[str]:
    """What is called or named as `module.name`."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh Python has loaded after this statement."""
    program = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    seen = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    return set(seen.stdout.split())


def test_imports_follow_the_layers_of_pyproject():
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    seen = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert "0 broken" in seen.stdout


def test_only_the_command_runner_starts_processes():
    starters = {
        path
        for path, tree in modules().items()
        if imported(tree) & {"subprocess", "multiprocessing", "pty"}
        or called(tree)
        & {"os.system", "os.popen", "os.fork", "os.posix_spawn", "asyncio.create_subprocess_exec"}
    }
    assert starters == {COMMAND_RUNNER}


def test_only_the_clock_reads_time_and_sleeps():
    readers = {path for path, tree in modules().items() if "time" in imported(tree)}
    assert readers == {CLOCK}


def test_no_module_reads_the_time_of_day_past_the_clock():
    forbidden = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    assert {
        path: found
        for path, tree in modules().items()
        if (found := {name for name in called(tree) if name in forbidden})
    } == {}


def test_nothing_is_ever_run_by_a_shell():
    shells = {
        path
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "shell"
    }
    assert shells == set()


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        # The command line answers at once; the plugin is loaded inside the Girder server as well.
        (
            "import girder_worker_slurm.cli",
            {"celery", "kombu", "girder_worker", "girder_client", "slicer_cli_web"},
        ),
        (
            "import girder_worker_slurm",
            {"celery", "kombu", "girder_worker", "pydantic", "jinja2", "requests"},
        ),
        (
            "from girder_worker_slurm import SlurmPlugin; SlurmPlugin(None)",
            {"celery", "girder_worker", "pydantic"},
        ),
        ("import girder_worker_slurm.testing", {"celery", "girder_worker", "girder_client", "requests"}),
        (
            "import girder_worker_slurm.options.girder_settings",  # inside the Girder server as well
            {"celery", "girder_worker", "pydantic", "requests", "girder_worker_singularity"},
        ),
        ("import girder_worker_slurm.settings", {"celery", "girder_worker", "requests"}),
        ("import girder_worker_singularity", {"celery", "girder_worker", "girder_worker_slurm"}),
    ],
)
def test_what_is_imported_first_loads_little(statement, never):
    assert loaded_by(statement) & never == set()


def test_every_package_is_in_the_wheel_with_its_script():
    assert (INSTALLED / "girder_worker_slurm" / "script" / "singularity.slurm").is_file()
    for package in PACKAGES:
        folders = {path.parent for path in (INSTALLED / package).rglob("*.py")}
        assert all((folder / "__init__.py").is_file() for folder in folders)
