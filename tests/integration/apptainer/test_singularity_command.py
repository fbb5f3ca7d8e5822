"""`girder-singularity` as a person types it: real Apptainer, real registry, real files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.girder_site import wait_until
from tests.support.images import SHOW_ARGUMENTS
from tests.support.slow_link import SlowLink

PROGRAM = "from girder_worker_singularity.cli import main; main()"
DAY = 86400.0
WAITER = """#!/bin/sh
echo begun
until [ -e /data/go ]; do sleep 0.1; done
# Read now, not before: the file of the image must still be there.
cat /opt/later.txt
"""


@dataclass
class Person:
    """Somebody with a store of their own."""

    root: Path
    registry: str
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.root / "worker.cfg"
        config.write_text(
            "[singularity]\n"
            f"plain_http_registries = {self.registry}\n"
            f"tmp_dir = {self.root}/build\n"
            "min_free_bytes = 100000000\n"
        )
        self.environment = {
            **os.environ,
            "GIRDER_WORKER_SLURM_CONFIG": str(config),
            "SIF_IMAGE_PATH": str(self.sifs),
            "TMPDIR": str(self.root),
        }

    @property
    def sifs(self) -> Path:
        return self.root / "sifs"

    def argv(self, *argv: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM, *argv]

    def __call__(self, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*argv), env=self.environment, cwd=self.root, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *argv: str, code: int = 0):
        return json.loads(self(*argv, "--json", code=code).stdout)

    def begin(self, *argv: str) -> subprocess.Popen[str]:
        """A `run` that goes on; returns once its container has said something."""
        process = subprocess.Popen(
            self.argv("run", *argv), env=self.environment, cwd=self.root, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return process

    def age(self, days: float) -> None:
        """As if nothing in the store had been made or used for that long."""
        then = time.time() - days * DAY
        for note in self.sifs.glob("*.sif.json"):
            note.write_text(json.dumps({**json.loads(note.read_text()), "converted_at": then}))
        for path in self.sifs.glob("*.sif"):
            os.utime(path, (then, then))
        for stamp in self.sifs.glob(".used/*"):
            stamp.write_text(f"{then}\n")


@pytest.fixture
def person(tmp_path, registry) -> Person:
    return Person(tmp_path, registry)


@pytest.fixture(scope="session")
def waiting_image(push) -> str:
    return push(
        files={"/opt/wait.sh": WAITER, "/opt/later.txt": "still here\n", "/opt/show.sh": SHOW_ARGUMENTS},
        entrypoint=["/opt/wait.sh"],
    )


def test_an_image_is_pulled_listed_inspected_run_and_verified(person, show_image):
    pulled = person("pull", show_image)
    assert "Build complete" in pulled.stderr
    (sif,) = person.json("list")
    assert (sif["image"], sif["source"], sif["damage"], sif["last_used_at"]) == (
        show_image,
        "docker",
        None,
        None,
    )
    assert Path(sif["path"]).stat().st_size == sif["size_bytes"]
    facts = person.json("inspect", show_image)
    assert facts["entrypoint"] == ["./show.sh", "one two"]
    assert facts["working_dir"] == "/opt/my app"
    assert facts["digest"] == sif["digest"]
    assert facts["labels"]["note"] == "y z"
    assert "bootstrap: docker" in facts["definition"].lower()
    assert person("run", show_image).stdout == "<one two>\n<from>\n<the image>\n"
    odd = ["--list_cli", "a b", "$HOME", "'\"`", "ü\n", ""]
    expected = "".join(f"<{argument}>\n" for argument in ["one two", *odd])
    assert person("run", show_image, *odd).stdout == expected
    assert person.json("list")[0]["last_used_at"] is not None
    assert person.json("verify")[0]["whole"] is True


def test_a_run_is_what_the_printed_command_is(person, show_image):
    (person.root / "in put,x").mkdir()
    (person.root / "in put,x" / "file").write_text("content")
    options = (
        "--mount",
        "in put,x:/data:ro",
        "--env",
        "SECRET=a $b",
        "--workdir",
        "/data",
        "--entrypoint",
        "/bin/sh",
    )
    script = 'pwd; cat file; echo "$SECRET $ODD"; touch x 2>/dev/null || echo read-only; env | grep -c PATH; exit 3'
    ran = person("run", *options, show_image, "-c", script, code=3)
    assert ran.stdout.startswith('/data\ncontenta $b a b "c" $HOME')
    assert "read-only" in ran.stdout
    printed = person("run", "--print-command", *options, show_image, "-c", script).stdout
    assert "a $b" not in printed
    again = subprocess.run(["/bin/sh", "-c", printed], capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (3, ran.stdout)
    argv = shlex.split(printed)
    scratch = Path(argv[argv.index("--workdir") + 1])
    assert (scratch / "environment").stat().st_mode & 0o777 == 0o600
    assert scratch.exists()


def test_a_pull_looks_whether_the_image_has_changed(person, push):
    image = push(
        tag="1",
        name="apptainer-tests/command",
        files={"/show.sh": SHOW_ARGUMENTS},
        entrypoint=["/show.sh", "a"],
    )
    assert person.json("pull", image)[0]["converted"] is True
    assert person.json("pull", image)[0]["converted"] is False
    push(
        tag="1",
        name="apptainer-tests/command",
        files={"/show.sh": SHOW_ARGUMENTS},
        entrypoint=["/show.sh", "b"],
    )
    assert person.json("pull", "--policy", "if-not-present", image)[0]["converted"] is False
    assert person("run", image, "x").stdout == "<a>\n<x>\n"
    assert person.json("pull", image)[0]["converted"] is True
    assert person("run", image, "x").stdout == "<b>\n<x>\n"


def test_an_image_that_is_not_there_is_told_in_one_line(person, registry):
    done = person("pull", f"{registry}/apptainer-tests/absent:1", code=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("girder-singularity: ")]
    assert "does not have the image" in line
    assert person("run", f"{registry}/apptainer-tests/absent:1", code=1).stdout == ""
    assert "GIRDER" not in done.stderr


def test_a_truncated_sif_is_found_and_made_again(person, show_image):
    (sif,) = person.json("pull", show_image)
    whole = Path(sif["sif"])
    os.truncate(whole, whole.stat().st_size // 2)
    (verdict,) = person.json("verify", code=1)
    assert (verdict["whole"], verdict["path"]) == (False, str(whole))
    assert person.json("verify", show_image, code=1) == [verdict]
    assert person.json("list")[0]["damage"]
    assert person("run", show_image, "x").stdout == "<one two>\n<x>\n"
    assert person.json("verify")[0]["whole"] is True


def test_signatures_are_looked_at_on_demand(person, show_image):
    person("pull", show_image)
    (verdict,) = person.json("verify", "--signatures", show_image, code=1)
    assert "signature not found" in verdict["problem"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_nothing(person, waiting_image, number):
    (person.root / "data").mkdir()
    process = person.begin("--mount", "data:/data", waiting_image)
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    assert list(person.root.glob("girder-singularity-run-*")) == []
    mark = str(person.sifs).encode()

    def is_gone() -> bool:
        return not any(mark in command_line(process) for process in Path("/proc").glob("[0-9]*"))

    wait_until("the container is gone", is_gone, seconds=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["pull", "run"])
def test_a_pull_that_is_interrupted_leaves_nothing(person, push, registry, number, command):
    image = push(files={"/opt/noise": os.urandom(4_000_000)})
    with SlowLink(f"http://{registry}", bytes_per_second=1e6) as link:
        config = Path(person.environment["GIRDER_WORKER_SLURM_CONFIG"])
        config.write_text(config.read_text().replace(registry, f"127.0.0.1:{link.port}"))
        process = subprocess.Popen(
            # A shell's `&` hands down SIGINT as ignored, and that is respected.
            ["env", "--default-signal"]
            + person.argv(command, f"127.0.0.1:{link.port}/{image.partition('/')[2]}"),
            env=person.environment,
            cwd=person.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        build = person.root / "build"
        wait_until("layers come", lambda: list(build.glob("*/bundle-temp-*/layout-*/blobs/sha256/*")))
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
    assert list(build.iterdir()) == []
    assert {path.name for path in person.sifs.iterdir()} <= {".leases"}
    assert list((person.sifs / ".leases").iterdir()) == []
    mark = str(person.sifs).encode()
    assert not [found for found in Path("/proc").glob("[0-9]*") if mark in command_line(found)]


def test_a_program_that_closes_its_own_directories_leaves_nothing(person, show_image):
    script = "mkdir -p /tmp/a/b && touch /tmp/a/b/c && chmod 000 /tmp/a/b /tmp/a && echo done"
    assert person("run", "--entrypoint", "/bin/sh", show_image, "-c", script).stdout == "done\n"
    assert list(person.root.glob("girder-singularity-run-*")) == []


def test_variables_with_odd_names_are_named_and_the_others_arrive(person, show_image):
    odd = ("--env", "a.b=1", "--env", "HOME=/x", "--env", "OK=2")
    ran = person("run", *odd, "--entrypoint", "/bin/sh", show_image, "-c", "echo $OK $PLAIN")
    assert ran.stdout == "2 plain\n"
    assert "'a.b'" in ran.stderr
    assert "'HOME'" in ran.stderr


def test_a_store_that_can_only_be_read_gives_what_is_current(person, push):
    image = push(
        tag="1", name="apptainer-tests/read-only", files={"/show.sh": SHOW_ARGUMENTS}, entrypoint=["/show.sh"]
    )
    person("pull", image)
    directories = [person.sifs, *(path for path in person.sifs.iterdir() if path.is_dir())]
    for directory in directories:
        directory.chmod(0o500)
    assert person.json("pull", image)[0]["converted"] is False
    assert person("run", image, "x").stdout == "<x>\n"
    push(
        tag="1",
        name="apptainer-tests/read-only",
        files={"/show.sh": SHOW_ARGUMENTS},
        entrypoint=["/show.sh", "new"],
    )
    (answer,) = person.json("pull", image, code=1)
    assert "`pull_policy`" in answer["error"]
    assert person.json("pull", "--policy", "if-newer", image)[0]["converted"] is False
    assert person("run", image, "x").stdout == "<x>\n"
    for directory in directories:
        directory.chmod(0o700)


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_sif_in_use_is_not_pruned_and_an_unused_one_is(person, waiting_image, show_image):
    person("pull", waiting_image, show_image)
    person.age(30)
    (person.root / "data").mkdir()
    process = person.begin("--mount", "data:/data", waiting_image)
    told = person.json("prune", "--max-bytes", "0", "--unused-days", "0")
    assert [entry["image"] for entry in told["removed"]] == [show_image]
    assert told["freed_bytes"] == told["removed"][0]["size_bytes"]
    assert told["over_bytes"] > 0
    (person.root / "data" / "go").touch()
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "still here\n")
    assert [sif["image"] for sif in person.json("list")] == [waiting_image]
    assert person("run", show_image, "x").stdout == "<one two>\n<x>\n"


def test_a_container_of_which_nobody_knows_goes_on_with_its_file(person, waiting_image):
    """As when a worker was down for days while its job ran."""
    (person.root / "data").mkdir()
    process = person.begin("--mount", "data:/data", waiting_image)
    person.age(2)
    told = person.json("prune", "--unused-days", "1")
    assert told["removed"][0]["at_once"] is False
    assert person.json("list") == []
    (person.root / "data" / "go").touch()
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "still here\n")


def test_only_the_images_that_are_named_are_kept(person, waiting_image, show_image):
    person("pull", waiting_image, show_image)
    person.age(30)
    keep = person.root / "keep.txt"
    keep.write_text(f"{show_image}\n")
    assert [
        entry["image"] for entry in person.json("prune", "--keep-images", str(keep), "--dry-run")["removed"]
    ] == [waiting_image]
    person("prune", "--keep-images", str(keep))
    assert [sif["image"] for sif in person.json("list")] == [show_image]
