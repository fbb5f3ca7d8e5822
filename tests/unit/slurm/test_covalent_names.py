"""Covalent's section of the configuration, as its document shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from girder_worker_slurm.errors import SettingsInvalid
from girder_worker_slurm.options.covalent_names import (
    BY_SSH,
    SECTION,
    SETTINGS,
    TABLES,
    WITHOUT_MEANING,
    translated,
)
from girder_worker_slurm.settings import load_settings, setting_fields

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "aliases.md"

# Their document's example, without the four keys about SSH.
EXAMPLE = """\
[executors.slurm]
remote_workdir = "/scratch/user"
cache_dir = "/tmp/covalent"

[executors.slurm.options]
nodes = 1
ntasks = 4
cpus-per-task = 8
constraint = "gpu"
gpus = 4
qos = "regular"

[executors.slurm.srun_options]
cpu_bind = "cores"
gpus = 4
gpu-bind = "single:1"
"""


def load(tmp_path, text):
    path = tmp_path / "worker.cfg"
    path.write_text(text)
    return load_settings((path,), {})


def test_the_example_of_the_document_is_read_as_it_is(tmp_path):
    settings = load(tmp_path, EXAMPLE)
    assert settings.jobs_root == Path("/scratch/user")
    assert settings.slurm.options == {
        "nodes": "1", "ntasks": "4", "cpus-per-task": "8", "constraint": "gpu", "gpus": "4", "qos": "regular",
    }  # fmt: skip
    assert settings.slurm.srun_options == {"cpu_bind": "cores", "gpus": "4", "gpu-bind": "single:1"}
    assert not settings.slurm.use_srun


def test_all_other_names_of_the_executor_lead_to_ours(tmp_path):
    settings = load(
        tmp_path,
        "[executors.slurm]\n"
        'slurm_path = "/opt/slurm/bin" # theirs\n'
        "poll_freq = 60 # seconds\n"
        "conda_env = 'tools'\n"
        'bashrc_path = "$HOME/.bashrc"\n'
        "use_srun = true\n"
        'srun_append = "nsys profile -t \\"cuda\\""\n'
        'prerun_commands = ["module load a/1.2, b", "echo \'x\'",]\n'
        'postrun_commands = [\n    "true",\n    "false"\n    ]\n'
        "ignore_versions = true\n"
        'address = ""\n'
        "[executors.slurm.options]\n"
        'parsable = ""\n'
        '"mem" = "4G"\n'
        "[executors.slurm.variables]\n"
        'A = "b # c"\n',
    ).slurm
    assert settings.commands_dir == Path("/opt/slurm/bin")
    assert settings.poll_seconds == 60
    assert (settings.conda_env, settings.bashrc_path, settings.use_srun) == ("tools", "$HOME/.bashrc", True)
    assert settings.srun_append == 'nsys profile -t "cuda"'
    assert settings.prerun_commands == ["module load a/1.2, b", "echo 'x'"]
    assert settings.postrun_commands == ["true", "false"]
    assert (settings.options, settings.variables) == ({"mem": "4G"}, {"A": "b # c"})


def test_what_is_said_later_wins_by_whichever_name(tmp_path):
    assert (
        load(tmp_path, "[executors.slurm]\npoll_freq = 60\n[slurm]\npoll_seconds = 9\n").slurm.poll_seconds
        == 9
    )
    assert (
        load(tmp_path, "[slurm]\npoll_seconds = 9\n[executors.slurm]\npoll_freq = 60\n").slurm.poll_seconds
        == 60
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[executors.slurm]\naddress = "login.cluster.org"\n', "worker.cfg:2: `address` of .* by SSH"),
        ('[executors.slurm.sshproxy]\npassword = "x"\n', "worker.cfg:2: `password` of .* by SSH"),
        ("[executors.slurm]\npoll_frequency = 1\n", "worker.cfg:2: `poll_frequency` is not known in .*poll_freq"),
        ("[executors.slurm.optoins]\nmem = 1\n", "`mem` is not known in .executors.slurm.optoins."),
        ('[executors.slurm]\nvariables = {A = "b"}\n', "a section of its own"),
        ("[executors.slurm]\nprerun_commands = [echo]\n", "no value of TOML"),
        ("[executors.slurm.options]\noutput = 1\n", "only the worker"),
        ("[executors.dask]\nworkers = 1\n", "unknown section"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path, text, words):
    with pytest.raises(SettingsInvalid, match=words) as told:
        load(tmp_path, text)
    assert "x" not in str(told.value).partition("password")[2].partition("by SSH")[0].split()


def test_all_names_lead_to_settings_that_exist():
    ours = {(field.section, field.name) for field in setting_fields()}
    assert {*SETTINGS.values(), *TABLES.values()} <= ours
    assert translated("slurm", "a", "b") == ("slurm", "a", "b")


def test_the_page_about_them_names_them_all():
    page = PAGE.read_text(encoding="utf-8")
    for name in (*SETTINGS, *WITHOUT_MEANING, *BY_SSH):
        assert f"`{name}`" in page, name
    for name in TABLES:
        assert f"`[{SECTION}.{name}]`" in page
    for field in setting_fields():
        for variable in field.environment:
            assert not variable.startswith("JARVICE_") or f"`{variable}`" in page, variable
