"""`girder-singularity` on a store whose Apptainer is pretended."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace

import pytest
from click.testing import CliRunner, Result

from girder_worker_singularity import cli as package
from girder_worker_singularity.cli import cli
from girder_worker_singularity.cli import site as site_module
from girder_worker_singularity.cli.site import SingularitySite, site_store
from girder_worker_singularity.cli.words import ago_text, size_bytes, size_text
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.run.image_rules import parse_image_rule
from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.prune import DAY_SECONDS
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.sif.use import last_used, note_use
from girder_worker_singularity.source import girder_images as girder_images_module
from girder_worker_singularity.testing import FakeAnswer, FakeClock, FakeCommandRunner
from tests.support.sif_files import FakeApptainer, sif_bytes

IMAGE = "team/tool:1"


@dataclass
class Desk:
    """A person at a command line."""

    site: SingularitySite
    apptainer: FakeApptainer

    def __call__(self, *argv: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, list(argv), input=stdin)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    def json(self, *argv: str, code: int = 0, stdin: str | None = None):
        return json.loads(self(*argv, "--json", code=code, stdin=stdin).stdout)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    apptainer = FakeApptainer()
    apptainer.images[f"docker://docker.io/{IMAGE}"] = sif_bytes(
        oci_config={
            "Entrypoint": ["./run", "x y"],
            "Cmd": ["--help"],
            "Env": ["PATH=/bin", "A=1"],
            "WorkingDir": "/opt",
            "Labels": {"note": "[bold]"},
        }
    )
    clock = FakeClock(time.time())
    options = StoreOptions(ConvertOptions(tmp_dir=tmp_path / "build"), minimum_free_bytes=0)
    store = SifStore(
        tmp_path / "sifs",
        apptainer.runner(),
        clock,
        options,
        ask_registry=lambda *_: None,
        ask_engine=lambda _: None,
    )
    site = SingularitySite(store, apptainer.runner(), clock, "apptainer")
    monkeypatch.setattr(site_module, "site_store", lambda: site)
    return Desk(site, apptainer)


@pytest.mark.parametrize("name", list(cli.commands))
def test_the_help_of_each_command_has_examples_and_whole_sentences(name):
    text = CliRunner().invoke(cli, [name, "--help"]).output
    assert f"  girder-singularity {name}" in text.split("Examples:")[1]
    assert "." in (cli.commands[name].help or "")


def test_the_commands_are_listed_in_the_order_in_which_they_are_needed():
    text = CliRunner().invoke(cli, ["--help"]).output
    places = [
        text.index(f"\n  {name} ") for name in ("pull", "list", "inspect", "run", "verify", "adopt", "prune")
    ]
    assert places == sorted(places)


def test_a_sif_put_there_by_hand_is_adopted(desk):
    desk.site.root.mkdir(parents=True)
    (desk.site.root / "team_tool_1.sif").write_bytes(sif_bytes())
    assert desk("adopt", IMAGE).stdout.endswith("team_tool_1.sif is team/tool:1.\n")
    assert desk.json("adopt", IMAGE)["image"] == IMAGE
    assert desk.json("list")[0]["image"] == IMAGE
    assert "There is no other_1.sif" in desk("adopt", "other:1", code=1).stderr


def test_an_image_is_pulled_and_told_on_stdout_its_progress_on_stderr(desk):
    result = desk("pull", IMAGE)
    assert "team_tool_1.sif" in result.stdout
    assert "converted" in result.stdout
    assert "Build complete" in result.stderr
    assert "Build complete" not in result.stdout
    (answer,) = desk.json("pull", "--policy", "never", IMAGE)
    assert answer["converted"] is False


def test_an_image_that_cannot_be_pulled_does_not_keep_the_others_from_it(desk):
    answers = desk.json("pull", "UPPER:1", IMAGE, code=1)
    assert ["error" in answer for answer in answers] == [True, False]
    assert "upper-case" in answers[0]["error"]
    assert desk("pull", "UPPER:1", code=1).stderr.startswith("girder-singularity: UPPER:1: ")


def test_the_list_shows_use_and_damage(desk):
    assert "No SIFs" in desk("list").output
    assert desk.json("list") == []
    desk("pull", IMAGE, "other:1")
    sifs = {sif.name: sif for sif in desk.site.root.glob("*.sif")}
    note_use(sifs["other_1.sif"], desk.site.clock)
    os.truncate(sifs["team_tool_1.sif"], 33_000)
    listed = {entry["name"]: entry for entry in desk.json("list")}
    assert "cut off" in listed["team_tool_1.sif"]["damage"]
    assert listed["other_1.sif"]["damage"] is None
    assert listed["team_tool_1.sif"]["last_used_at"] is None
    assert listed["other_1.sif"]["last_used_at"] is not None
    text = desk("list").output
    assert "DAMAGED" in next(line for line in text.splitlines() if line.startswith("team_tool_1"))
    assert "DAMAGED" not in next(line for line in text.splitlines() if line.startswith("other_1"))


def test_inspect_shows_how_the_image_is_started(desk):
    desk("pull", IMAGE)
    facts = desk.json("inspect", IMAGE)
    assert facts["entrypoint"] == ["./run", "x y"]
    assert (facts["command"], facts["working_dir"], facts["labels"]) == (
        ["--help"],
        "/opt",
        {"note": "[bold]"},
    )
    assert facts["definition"].startswith("bootstrap: docker")
    text = desk("inspect", "--definition", IMAGE).output
    assert "./run 'x y'" in text
    assert "note=[bold]" in text
    assert "bootstrap: docker" in text


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_not_there_is_refused_in_one_line(desk, command):
    result = desk(command, "absent:1", code=1)
    assert result.stderr.startswith("girder-singularity: There is no SIF of absent:1 in ")
    assert result.stderr.count("\n") == 1


def test_the_printed_command_is_the_one_of_a_job_and_what_it_needs_is_there(desk, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("FROM_SHELL", "s")
    monkeypatch.chdir(tmp_path)
    argv = ("run", "--print-command", "--mount", "in:/in:ro", "--env", "SECRET=word", "--env", "FROM_SHELL")
    text = desk(*argv, "--workdir", "/w", IMAGE, "Segment", "--json", "a b").stdout
    (scratch,) = tmp_path.glob("girder-singularity-run-*")
    assert text.startswith("apptainer --quiet exec --containall --cleanenv --no-eval ")
    assert f'source={tmp_path}/in","destination=/in",ro' in text
    assert "--pwd /w" in text
    assert text.rstrip().endswith("team_tool_1.sif ./run 'x y' Segment --json 'a b'")
    assert "word" not in text
    assert (scratch / "environment").read_text() == 'SECRET="word"\nFROM_SHELL="s"\n'
    assert (scratch / "environment").stat().st_mode & 0o777 == 0o600


def test_variables_that_apptainer_cannot_hand_over_are_named(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told = desk("run", "--print-command", "--env", "a.b=1", "--env", "HOME=/x", "--env", "OK=2", IMAGE).stderr
    assert "'HOME'" in told
    assert "'a.b'" in told
    (scratch,) = tmp_path.glob("girder-singularity-run-*")
    assert (scratch / "environment").read_text() == 'OK="2"\n'


def test_a_run_follows_the_site_s_rules_for_the_image(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    desk.site = replace(
        desk.site,
        runner=FakeCommandRunner({"apptainer": FakeAnswer(0, "")}),
        rules={"team/*": parse_image_rule("writable=overlay:80, fakeroot, net=none")},
    )
    monkeypatch.setattr(site_module, "site_store", lambda: desk.site)
    text = desk("run", "--print-command", IMAGE, "x").stdout
    for word in ("--fakeroot", "--net", "overlay.img"):
        assert word in text
    (made,) = desk.site.runner.calls
    assert made.argv[:4] == ("apptainer", "--quiet", "overlay", "create")
    assert "80" in made.argv


def test_a_run_ends_with_the_containers_code_and_leaves_nothing(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    argvs = []
    codes = iter((0, 7, -9))

    def run(argv):
        argvs.append(argv)
        return next(codes)

    monkeypatch.setattr("girder_worker_singularity.command_runner.run_in_foreground", run)
    desk("run", IMAGE, "--list_cli")
    desk("run", IMAGE, code=7)
    desk("run", IMAGE, "--help", code=137)
    assert argvs[0][-3:] == ("./run", "x y", "--list_cli")
    assert argvs[1][-3:] == ("./run", "x y", "--help")
    assert list((tmp_path / "t").iterdir()) == []
    assert last_used(desk.site.root / "team_tool_1.sif") == desk.site.clock.now()


def test_verify_finds_what_is_cut_off(desk):
    desk("pull", IMAGE, "other:1")
    assert [entry["whole"] for entry in desk.json("verify")] == [True, True]
    os.truncate(desk.site.root / "team_tool_1.sif", 33_000)
    assert [entry["whole"] for entry in desk.json("verify", code=1)] == [True, False]
    assert "cut off" in desk("verify", IMAGE, code=1).stdout
    (answer,) = desk.json("verify", IMAGE, code=1)
    assert (answer["path"], answer["whole"]) == (str(desk.site.root / "team_tool_1.sif"), False)
    assert "cut off" in answer["problem"]
    desk("verify", "other:1")


def test_signatures_are_left_to_apptainer(desk, monkeypatch):
    desk("pull", IMAGE)
    runner = FakeCommandRunner(
        {"apptainer": FakeAnswer(returncode=255, stderr="FATAL: signature not found\n")}
    )
    site = SingularitySite(desk.site.store, runner, desk.site.clock, "apptainer")
    monkeypatch.setattr(site_module, "site_store", lambda: site)
    (answer,) = desk.json("verify", "--signatures", IMAGE, code=1)
    assert "signature not found" in answer["problem"]
    assert runner.calls[0].argv[1:3] == ("verify", "--all")


def test_prune_says_what_it_did(desk):
    desk("pull", IMAGE, "other:1")
    desk.site.clock.advance(40 * DAY_SECONDS)
    note_use(desk.site.root / "other_1.sif", desk.site.clock)
    told = desk.json("prune", "--unused-days", "30", "--dry-run")
    assert [entry["image"] for entry in told["removed"]] == [IMAGE]
    text = desk("prune", "--unused-days", "30").output
    assert "team_tool_1.sif" in text
    assert "unused for 40 days" in text
    assert [entry["name"] for entry in desk.json("list")] == ["other_1.sif"]


def test_prune_keeps_the_images_that_are_named(desk, tmp_path):
    desk("pull", IMAGE, "other:1")
    desk.site.clock.advance(10 * DAY_SECONDS)
    told = desk.json("prune", "--keep-images", "-", stdin=f"# those of Girder\n\n{IMAGE}  # this one\n")
    assert [entry["image"] for entry in told["removed"]] == ["other:1"]


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a:1\nB B\n", "Line 2 of the images"),
        ("message:I\ntype:a\n", "None of the images to keep is in"),
    ],
)
def test_a_list_of_images_that_cannot_be_meant_removes_nothing(desk, stdin, words):
    desk("pull", IMAGE)
    desk.site.clock.advance(10 * DAY_SECONDS)
    assert words in desk("prune", "--keep-images", "-", stdin=stdin, code=2).stderr
    assert len(desk.json("list")) == 1


@pytest.fixture
def girder(monkeypatch):
    """What a Girder lists, by its address; whom it was asked by."""
    listed, asked = {}, []

    def answer(url, account):
        asked.append(account)
        return frozenset(parse_image_reference(image).canonical for image in listed[url])

    monkeypatch.setattr(girder_images_module, "girder_images", answer)
    monkeypatch.setenv("GIRDER_API_KEY", "k3y")
    monkeypatch.delenv("GIRDER_TOKEN", raising=False)
    return listed, asked


def test_prune_keeps_the_images_that_girder_has(desk, girder, tmp_path, monkeypatch):
    listed, asked = girder
    listed |= {"https://a": [IMAGE], "https://b": ["other:1"]}
    desk("pull", IMAGE, "other:1", "third:1", "fourth:1")
    desk.site.clock.advance(10 * DAY_SECONDS)
    more = ("--keep-images", "-", "--keep-girder", "https://a", "--keep-girder", "https://b")
    told = desk.json("prune", *more, "--dry-run", stdin="fourth:1\n")
    assert [entry["image"] for entry in told["removed"]] == ["third:1"]
    assert asked[0].api_key == "k3y"
    monkeypatch.delenv("GIRDER_API_KEY")
    assert "API key" in desk("prune", "--keep-girder", "https://a", code=2).stderr
    key = tmp_path / "key"
    key.write_text("fr0m file\n")
    assert (
        "read by others"
        in desk("prune", "--keep-girder", "https://a", "--girder-key-file", str(key), code=1).stderr
    )
    key.chmod(0o600)
    assert (
        "does not hold"
        in desk("prune", "--keep-girder", "https://a", "--girder-key-file", str(key), code=1).stderr
    )
    key.write_text("fr0mfile\n")
    told = desk.json("prune", "--keep-girder", "https://a", "--girder-key-file", str(key))
    assert sorted(entry["image"] for entry in told["removed"]) == ["fourth:1", "other:1", "third:1"]
    assert asked[-1].api_key == "fr0mfile"


def test_a_girder_without_images_removes_nothing(desk, girder):
    girder[0]["https://a"] = []
    desk("pull", IMAGE)
    desk.site.clock.advance(10 * DAY_SECONDS)
    assert "lists no images" in desk("prune", "--keep-girder", "https://a", code=2).stderr
    girder[0]["https://a"] = ["quite:another"]
    assert "None of the images" in desk("prune", "--keep-girder", "https://a", code=2).stderr
    assert len(desk.json("list")) == 1


def test_what_does_not_fit_is_told(desk):
    desk("pull", IMAGE)
    assert "more than wanted" in desk("prune", "--max-bytes", "1k").output
    assert "not a size" in desk("prune", "--max-bytes", "much", code=2).stderr


def test_without_a_directory_every_command_says_what_to_set(monkeypatch):
    monkeypatch.delenv("SIF_IMAGE_PATH", raising=False)
    monkeypatch.delenv("GIRDER_WORKER_SLURM_CONFIG", raising=False)
    result = CliRunner().invoke(package.cli, ["list"])
    assert result.exit_code == 1
    assert "SIF_IMAGE_PATH" in result.stderr


def test_the_store_is_the_workers(tmp_path):
    config = tmp_path / "worker.cfg"
    config.write_text(
        f"[singularity]\nsif_image_path = {tmp_path}/a\napptainer = /opt/apptainer\n[jobs]\nroot = /x\n"
    )
    environment = {"GIRDER_WORKER_SLURM_CONFIG": str(config)}
    assert site_store(environment).root == tmp_path / "a"
    assert site_store(environment).apptainer == "/opt/apptainer"
    assert site_store({**environment, "SIF_IMAGE_PATH": "/b"}).root.name == "b"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1k", 1024), ("1.5 GiB", 3 * 1024**3 // 2), ("20G", 20 * 1024**3), ("7B", 7)],
)
def test_sizes_are_read_as_people_write_them(text, value):
    assert size_bytes(text) == value


@pytest.mark.parametrize("text", ["", "G", "-1", "1 X", "1e9"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match=r".*"):
        size_bytes(text)


def test_sizes_and_times_are_short():
    assert [size_text(size) for size in (0, 1023, 1536, 5 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 TiB",
    ]
    assert [ago_text(100_000.0 - age, 100_000.0) for age in (-5, 5, 600, 9000)] == [
        "0 s",
        "5 s",
        "10 min",
        "2 h",
    ]
    assert ago_text(None, 0.0) == "never"
