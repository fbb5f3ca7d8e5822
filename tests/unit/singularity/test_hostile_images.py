"""Images, registries and options that mean ill, or are merely odd: none harms another image or holds the worker up."""

from __future__ import annotations

import json
import os
import threading

import pytest

from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.errors import (
    CliContractViolated,
    ContainerError,
    ConversionFailed,
    DockerOptionInvalid,
    ImageNotAllowed,
    SifDamaged,
)
from girder_worker_singularity.image.config import ImageConfig
from girder_worker_singularity.image.pull_names import PullNames
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.run import cli_contract
from girder_worker_singularity.run.container import ContainerSpec, container_environment
from girder_worker_singularity.run.docker_options import docker_options
from girder_worker_singularity.run.image_rules import ImageRule
from girder_worker_singularity.settings import load_singularity_settings
from girder_worker_singularity.settings_file import SettingsInvalid
from girder_worker_singularity.sif.conversion_errors import conversion_error
from girder_worker_singularity.sif.file import read_sif
from girder_worker_singularity.sif.shelf import Sif
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.source.image_sources import SourceOptions
from girder_worker_singularity.source.registry_connection import RegistryAccess
from girder_worker_singularity.source.registry_digest import registry_digest
from girder_worker_singularity.testing import FakeAnswer, FakeCommandRunner
from tests.support.sif_files import FakeApptainer, sif_bytes
from tests.unit.singularity.test_registry_digest import DIGEST, Web

VICTIM = parse_image_reference("registry.example.org/team/tool:1")


def store(root, apptainer, **options):
    return SifStore(
        root,
        apptainer.runner(),
        SystemClock(),
        StoreOptions(minimum_free_bytes=0, **options),
        ask_registry=lambda _reference, _access: None,
        ask_engine=lambda _reference: None,
    )


# -- names in the store


def test_no_image_can_be_named_like_the_file_of_another():
    """Its end is a hash that anybody can compute; so it holds a character that no reference can."""
    name = VICTIM.unambiguous_sif_name.removesuffix(".sif")
    assert "~" in name
    for repository in (name, name.replace("_", "/"), name.replace("_", "/", 1)):
        with pytest.raises(ContainerError):
            parse_image_reference(repository)


def test_a_file_of_that_name_that_is_another_s_is_not_taken(tmp_path):
    apptainer = FakeApptainer()
    apptainer.images[f"docker://{VICTIM.canonical}"] = sif_bytes()
    files = store(tmp_path, apptainer)
    made = files.ensure(str(VICTIM))
    foreign = tmp_path / VICTIM.unambiguous_sif_name
    made.path.rename(foreign)
    note = made.path.with_name(f"{made.path.name}.json")
    foreign.with_name(f"{foreign.name}.json").write_text(note.read_text().replace("team/tool", "evil/tool"))
    note.unlink()
    assert files.find(str(VICTIM)) is None


def test_names_that_a_site_completes_do_not_share_a_conversion_with_names_in_full(tmp_path):
    apptainer = FakeApptainer()
    begun, go_on = threading.Event(), threading.Event()

    def on_build():
        begun.set()
        go_on.wait(5)

    apptainer.on_build = on_build
    apptainer.images["docker://registry.lab/tool:stable"] = sif_bytes(labels={"whose": "site"})
    apptainer.images["docker://docker.io/library/tool:latest"] = sif_bytes(labels={"whose": "hub"})
    names = PullNames(default_registry="registry.lab", default_tag="stable")
    files = store(tmp_path, apptainer, sources=SourceOptions(names=names))
    found = {}

    def ensure(image):
        found[image] = files.ensure(image)

    first = threading.Thread(target=ensure, args=("tool",))
    first.start()
    assert begun.wait(5)
    second = threading.Thread(target=ensure, args=("docker.io/library/tool:latest",))
    second.start()
    go_on.set()
    first.join(10)
    second.join(10)
    whose = {image: sif.config.labels["whose"] for image, sif in found.items()}
    assert whose == {"tool": "site", "docker.io/library/tool:latest": "hub"}


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo])
def test_what_is_no_file_is_damaged_and_holds_nobody_up(tmp_path, make):
    path = tmp_path / "x_1.sif"
    make(path)
    with pytest.raises(SifDamaged, match="is no file"):
        read_sif(path)


@pytest.mark.parametrize(
    "image",
    [
        "registry-1.docker.io:443/evil/x",
        "docker.io:443/evil/x",
        "index.docker.io/evil/x",
        "registry.hub.docker.com/evil/x",
        "evil/x@sha256:" + "ab" * 32,
        "Docker.io/evil/x:2",
    ],
)
def test_a_deny_rule_is_not_got_round_by_another_spelling(tmp_path, image):
    files = store(tmp_path, FakeApptainer(), rules=ImageRules(deny=("docker.io/evil/*",)))
    with pytest.raises(ImageNotAllowed):
        files.ensure(image)


# -- registries


def test_a_registry_that_never_ends_its_answer_is_waited_for_only_so_long(monkeypatch):
    monkeypatch.setattr("girder_worker_singularity.source.registry_digest._DEADLINE_SECONDS", 0.2)
    go_on = threading.Event()

    def answer(_request):
        go_on.wait(20)
        return 200, {"Docker-Content-Digest": DIGEST}

    assert registry_digest(VICTIM, RegistryAccess(session=Web(answer).session())) is None
    go_on.set()


def test_no_netrc_is_sent_to_a_registry(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    web = Web(lambda _request: (200, {"Docker-Content-Digest": DIGEST}))
    session = web.session()
    session.trust_env = True
    assert registry_digest(VICTIM, RegistryAccess(session=session)) == DIGEST
    assert "Authorization" not in web.seen[0].headers


def test_an_image_s_name_is_not_taken_for_what_went_wrong():
    image = parse_image_reference("registry.example.org/team/unauthorized:1")
    error = conversion_error(image, f"FATAL: While performing build: {image}: something else")
    assert type(error) is ConversionFailed


# -- what images say


@pytest.mark.parametrize("text", ["<" * 1_500_000, "<?xml " * 200_000, "</executable" + " " * 500_000])
def test_a_description_of_nothing_but_beginnings_is_read_at_once(text):
    """One expression for all took minutes, in which no other thread of the worker ran."""
    begun = os.times().user
    cli_contract._xml_in(text)
    assert os.times().user - begun < 5


def test_a_description_is_found_among_other_brackets():
    text = "<frozen importlib>\n<?xml version='1.0'?>\n<executable><title>A</title></executable >\n<done>"
    assert cli_contract._xml_in(text).startswith("<?xml")
    assert cli_contract._xml_in(text).endswith("</executable >")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "a\nb", "", "x" * 201])
def test_a_cli_that_no_program_can_be_given_fails_its_image_with_a_sentence(name):
    with pytest.raises(CliContractViolated, match="lists a CLI with the name"):
        cli_contract._parse_list("team/tool:1", json.dumps({name: {}}))


def test_an_ingest_follows_the_site_s_rules_for_the_image(tmp_path):
    runner = FakeCommandRunner({"apptainer": FakeAnswer(0, "{}")})
    sif = Sif(tmp_path / "x.sif", VICTIM, ImageConfig(entrypoint=("/x",)))
    rule = ImageRule(network_none=True, fakeroot=True, writable="overlay")
    cli_contract.run_on_this_host(sif, ["--list_cli"], runner=runner, scratch=tmp_path, rule=rule)
    (call,) = runner.calls
    assert {"--net", "--fakeroot", "--writable-tmpfs"} <= set(call.argv)


@pytest.mark.parametrize("value", ["a\tb", "l1\nl2", "a\u00a0b", "a\rb"])
def test_a_variable_with_characters_that_cannot_be_printed_goes_into_the_file(value):
    spec = ContainerSpec(sif="/x.sif", image=ImageConfig(environment=(f"A={value}",)), environment_file="/e")
    assert container_environment(spec) == {"A": value}


def test_an_image_s_working_directory_with_a_line_break_is_a_clear_error():
    with pytest.raises(ContainerError, match="working directory of the image"):
        ContainerSpec(sif="/a.sif", image=ImageConfig(entrypoint=("x",), working_dir="/a\nb"))


# -- options


@pytest.mark.parametrize(
    "options",
    [
        {"volumes": 5},
        {"environment": 5},
        {"tmpfs": 5},
        {"devices": 5},
        {"mounts": 5},
        {"device_requests": 5},
        {"device_requests": [{"Count": "x", "Capabilities": [["gpu"]]}]},
        {"device_requests": [{"Capabilities": [1]}]},
        {"device_requests": [{"DeviceIDs": 5, "Capabilities": [["gpu"]]}]},
        {"mem_limit": "9" * 400 + "g"},
        {"nano_cpus": 10**400},
        {"cpu_quota": 1e300, "cpu_period": 1e-300},
    ],
)
def test_docker_options_of_a_wrong_kind_are_named(options):
    with pytest.raises((DockerOptionInvalid, ContainerError)):
        docker_options(options)


@pytest.mark.parametrize(
    "line",
    [
        "prune_unused_days = -1",
        "max_store_bytes = -5",
        "convert_timeout_seconds = nan",
        "convert_timeout_seconds = -1",
        "overlay_mib = 5",
        "library = library.example.org",
        "library = https://me:secret@library.example.org",
        "apptainer = \t",
    ],
)
def test_settings_out_of_range_stop_the_start(tmp_path, line):
    file = tmp_path / "worker.local.cfg"
    file.write_text(f"[singularity]\n{line}\n" if "apptainer" not in line else "[singularity]\napptainer =\n")
    with pytest.raises(SettingsInvalid, match=str(file)):
        load_singularity_settings({"GIRDER_WORKER_SLURM_CONFIG": str(file)})
