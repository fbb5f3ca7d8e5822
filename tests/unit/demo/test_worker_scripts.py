"""The scripts of an installation and the versions they install, as far as they can be looked at without installing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

WORKER = Path(__file__).parents[3] / "worker"
SCRIPTS_WITHOUT_ARGUMENTS = ("worker/create.sh", "worker/demo.sh", "server/install.sh", "docker/check.sh")
SCRIPTS = (*SCRIPTS_WITHOUT_ARGUMENTS, "worker/install.sh", "worker/run.sh", "docker/make-env.sh")
PYTHONS = ("3.10.0", "3.11.2", "3.12.0", "3.13.0")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(lines):
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def constraints():
    return requirements((WORKER / "constraints.txt").read_text().splitlines())


def dependencies():
    """What pyproject.toml asks for, read without tomllib, which Python 3.10 does not have."""
    text = (WORKER.parent / "pyproject.toml").read_text()
    found = []
    for name in ("dependencies", "girder"):
        block = re.search(rf"^{name} = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        found += re.findall(r'^\s+"(.+)",', block[1], re.MULTILINE)
    return requirements(found)


@pytest.mark.parametrize("python", PYTHONS)
def test_each_dependency_is_pinned_once_to_a_version_that_it_allows(constraints, python):
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    pins = {}
    for pin in constraints:
        if pin.marker is None or pin.marker.evaluate(environment):
            assert normal(pin.name) not in pins
            pins[normal(pin.name)] = str(pin.specifier)
    for wanted in dependencies():
        if wanted.marker is not None and not wanted.marker.evaluate(environment):
            continue
        pinned = pins.get(normal(wanted.name), "")
        assert pinned.startswith("=="), (
            f"worker/constraints.txt has no {wanted.name} for Python {python}; its head says how to renew it"
        )
        assert wanted.specifier.contains(pinned[2:]), f"{wanted} and {pinned}"


def answer_of(script, *arguments, venv):
    environment = {"PATH": "/usr/bin:/bin", "GIRDER_WORKER_SLURM_VENV": str(venv)}
    return subprocess.run(
        [WORKER.parent / script, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_asked_for_help_gives_it_and_does_nothing(script, option, tmp_path):
    answer = answer_of(script, option, venv=tmp_path / "venv")
    assert answer.returncode == 0
    assert answer.stdout.startswith("usage: ")
    assert script in answer.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS_WITHOUT_ARGUMENTS)
def test_a_script_refuses_arguments_that_it_does_not_know(script, tmp_path):
    answer = answer_of(script, "--prefix=/x", venv=tmp_path / "venv")
    assert answer.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", sorted(path.name for path in WORKER.glob("**/*.sh")))
def test_scripts_are_valid_and_executable(script):
    path = next(WORKER.glob(f"**/{script}"))
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_the_demonstration_explains_itself_without_root():
    answer = subprocess.run([WORKER / "demo.sh", "--help"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert "--stop" in answer.stdout


def test_the_demonstration_refuses_an_unknown_option():
    answer = subprocess.run([WORKER / "demo.sh", "--nonsense"], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "usage:" in answer.stderr


@pytest.mark.parametrize(("script", "word"), [("install.sh", "create.sh"), ("run.sh", "install.sh")])
def test_scripts_name_the_one_that_comes_first(tmp_path, script, word):
    answer = subprocess.run(
        [WORKER / script],
        env={"PATH": "/usr/bin:/bin", "GIRDER_WORKER_SLURM_VENV": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert word in answer.stderr


def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    answer = subprocess.run(
        [WORKER / "create.sh"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(old), "GIRDER_WORKER_SLURM_VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "Python 3.10" in answer.stderr
    assert not (tmp_path / "venv").exists()


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def function_of_the_demonstration(name):
    text = (WORKER / "demo.sh").read_text()
    return re.search(rf"^{name}\(\) \{{.*?^\}}", text, re.MULTILINE | re.DOTALL)[0]


def test_an_installation_says_that_it_takes_a_while(tmp_path):
    for program in ("python", "girder-slurm"):
        executable(tmp_path / "venv" / "bin" / program, "exit 0")
    answer = answer_of("worker/install.sh", venv=tmp_path / "venv")
    assert "takes a minute or two" in answer.stdout.splitlines()[0]


def test_the_demonstration_s_command_does_not_care_where_it_is_called(tmp_path):
    executable(tmp_path / "site/venv/bin/girder-slurm", 'echo "$PWD: $*"')
    sudo = executable(tmp_path / "bin/sudo", 'shift; exec "$@"')
    function = function_of_the_demonstration("write_command")
    subprocess.run(
        [
            "bash",
            "-euc",
            f"demo={tmp_path} site={tmp_path}/site become_user=(env)\n{function}\nwrite_command",
        ],
        check=True,
    )
    answer = subprocess.run(
        [tmp_path / "girder-slurm", "jobs"],
        cwd=tmp_path,
        env={"PATH": f"{sudo.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "/: jobs\n"


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("1.4.5 at /usr/bin/apptainer", "goes on"),
        (
            "pat may not create user namespaces: set sysctl a=1",
            "no container can be started on this machine: pat may not create user namespaces: set sysctl a=1",
        ),
    ],
)
def test_the_demonstration_stops_where_no_container_can_be_started(tmp_path, note, said):
    executable(tmp_path / "devstack/devstack", f"echo 'girder ok'; echo 'note: apptainer: {note}'")
    function = function_of_the_demonstration("need_containers")
    script = (
        f'checkout={tmp_path}\nfail() {{ echo "$*"; exit 1; }}\n{function}\nneed_containers\necho "goes on"'
    )
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert answer.stdout == f"{said}\n"


def test_the_unit_tests_ask_for_git_before_anything_is_made(tmp_path):
    for program in ("dirname", "id", "grep", "paste"):
        (tmp_path / program).symlink_to(shutil.which(program))
    answer = subprocess.run(
        [shutil.which("bash"), WORKER.parent / "tests" / "run.sh", "unit"],
        env={"PATH": str(tmp_path), "GIRDER_SLURM_TEST_DIR": str(tmp_path / "made")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "git is not here" in answer.stdout
    assert not (tmp_path / "made").exists()


def test_ctrl_c_ends_the_tests_of_the_second_stack_and_does_not_go_on_with_the_next_ones(tmp_path):
    """pytest ends by itself on SIGINT: bash takes that for its wish to go on."""
    text = (WORKER.parent / "tests" / "run.sh").read_text(encoding="utf-8")
    function = re.search(r"^second_half\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)[0]
    for name in ("checkout", "tests-only"):
        (tmp_path / name).mkdir()
    script = (
        f"work={tmp_path} second=x\nacceptance_of() {{ echo a.py; }}\n"
        f"run_pytest() {{ echo pytest; kill -INT $$; return 2; }}\n{function}\nsecond_half"
    )
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert (answer.stdout, answer.returncode) == ("pytest\n", 130)


@pytest.mark.parametrize("arguments", [("al",), ("-k", "cancel"), ("tests/unit/slurm",)])
def test_a_word_that_tests_run_sh_does_not_know_is_no_run_of_the_unit_tests(tmp_path, arguments):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    answer = subprocess.run(
        [shutil.which("bash"), WORKER.parent / "tests" / "run.sh", *arguments],
        env={"PATH": str(tmp_path), "GIRDER_SLURM_TEST_DIR": str(tmp_path / "made")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("usage: tests/run.sh [unit|all]")
