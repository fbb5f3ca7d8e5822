"""The settings of images without the worker: the same files, the same variables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from girder_worker_singularity.errors import SettingsInvalid
from girder_worker_singularity.settings import SingularitySection, load_singularity_settings

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
