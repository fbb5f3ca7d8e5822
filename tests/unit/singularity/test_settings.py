"""The settings of images without the worker: the same files, the same variables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from girder_worker_singularity.assembly import make_store
from girder_worker_singularity.errors import ImageNotAllowed, SettingsInvalid
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.settings import SingularitySection, load_singularity_settings
from girder_worker_singularity.testing import FakeClock, FakeCommandRunner

REPOSITORY = Path(__file__).parents[3]


def environment(tmp_path, *texts, **more):
    names = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.cfg"
        path.write_text(text)
        names.append(str(path))
    return {"GIRDER_WORKER_SLURM_CONFIG": ":".join(names), **more}


def test_without_files_and_variables_all_is_default():
    assert load_singularity_settings({}) == SingularitySection()


def test_the_workers_sample_file_sets_the_defaults():
    variables = {"GIRDER_WORKER_SLURM_CONFIG": str(REPOSITORY / "worker.dist.cfg")}
    assert load_singularity_settings(variables) == SingularitySection()


def test_later_files_and_then_the_environment_win(tmp_path):
    first = "[singularity]\napptainer = one\nsif_image_path = /one\n"
    env = environment(tmp_path, first, "[singularity]\napptainer = two\n", SIF_IMAGE_PATH="/env")
    section = load_singularity_settings(env)
    assert (section.apptainer, section.sif_image_path) == ("two", Path("/env"))


def test_other_sections_are_not_looked_at(tmp_path):
    text = "[slurm]\nnonsense = x\n[slurm.options]\nmem = 1\n[new]\na = b\n[singularity]\napptainer = x\n"
    assert load_singularity_settings(environment(tmp_path, text)).apptainer == "x"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[slurm]\na = b\n[singularity]\napptianer = x\n", ["0.cfg:4", "apptianer", "apptainer"]),
        ("[singularity]\nmin_free_bytes = many\n", ["0.cfg:2", "[singularity] min_free_bytes", "many"]),
        ("[singularity]\npull_policy = sometimes\n", ["0.cfg:2", "pull_policy", "if-newer"]),
        ("[singularity]\nsources = registry, moon\n", ["0.cfg:2", "sources", "moon"]),
        ("[singularity]\nschemes = docker-archive\n", ["0.cfg:2", "schemes", "docker-archive"]),
        ("[singularity]\narchive_dir = images\n", ["0.cfg:2", "archive_dir", "absolute"]),
        ("[singularity]\narchive_dir = /a:b\n", ["0.cfg:2", "archive_dir", "colon"]),
        ("[singularity]\ndefault_registry = https://x\n", ["default_registry", "https://x"]),
        ("[singularity.registry_map]\ndocker.io = nohost\n", ["registry_map", "docker.io", "nohost"]),
        ("[singularity.what]\na = b\n", ["0.cfg:2", "singularity.what"]),
    ],
)
def test_a_mistake_in_the_own_section_is_told_with_its_place(tmp_path, text, words):
    with pytest.raises(SettingsInvalid) as caught:
        load_singularity_settings(environment(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_reading_them_loads_nothing_of_the_worker():
    script = (
        "import sys, girder_worker_singularity.settings as s; s.load_singularity_settings({});"
        "sys.exit(any(n.startswith(('girder_worker_slurm', 'requests', 'celery')) for n in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=REPOSITORY)


def test_sources_names_rules_and_accounts_reach_the_store(tmp_path):
    text = """[singularity]
sources = registry, archive
archive_dir = /archives
schemes = oras
pull_policy = if-newer
allow_images = registry.lab:5000/*
deny_images =
    */bad:*
    *:latest
verify_signatures = true
https_proxy = http://me:geheim@proxy:3128
[singularity.registry_map]
registry.lab:5000 = mirror.lab:5000/lab
"""
    env = environment(
        tmp_path,
        text,
        JARVICE_SYSTEM_REGISTRY="registry.lab:5000",
        JARVICE_SYSTEM_REPO_BASE="system/images",
        JARVICE_IMAGES_TAG="stable",
        JARVICE_DOCKER_USERNAME="me",
        JARVICE_DOCKER_PASSWORD="geheim",
    )
    section = load_singularity_settings(env)
    store = make_store(section, tmp_path, FakeCommandRunner(), FakeClock())
    options = store._options
    assert options.sources.places == ("registry", "archive")
    assert options.sources.archive_dir == Path("/archives")
    assert options.pull_policy == "if-newer"
    assert options.rules == ImageRules(("registry.lab:5000/*",), ("*/bad:*", "*:latest"), ("oras",))
    assert options.verify_signatures
    assert options.sources.credentials.registry == "registry.lab:5000"
    assert options.sources.credentials.password == "geheim"
    pulled = options.sources.names.pulled(parse_image_reference("tool"))
    assert str(pulled) == "mirror.lab:5000/lab/system/images/tool:stable"
    assert "geheim" not in f"{section!r} {options!r}"
    with pytest.raises(ImageNotAllowed, match="bad"):
        store.find("bad:1")
