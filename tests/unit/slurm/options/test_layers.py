from __future__ import annotations

import pytest

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.layers import (
    AllowedOptions,
    Layer,
    choose,
    option_lines,
    option_name,
    option_pairs,
)

ALLOWED = AllowedOptions(frozenset({"mem", "mem-per-cpu", "time", "gres", "gpus", "exclusive", "nodes"}))


def site(*options):
    return Layer("[slurm.options]", options)


def user(*options):
    return Layer("The argument --slurm_{name}", options, is_request=True)


def chosen(*layers):
    return {option.name: option.value for option in choose(layers, ALLOWED)}


def test_the_last_layer_that_names_an_option_has_it():
    found = choose((site(("mem", "1G"), ("time", "60")), site(("mem", "2G")), user(("mem", "4G"))), ALLOWED)
    assert [(option.name, option.value) for option in found] == [("mem", "4G"), ("time", "60")]
    assert found[0].origin == "The argument --slurm_mem"
    assert found[0].instead_of == (("mem", "2G", "[slurm.options]"), ("mem", "1G", "[slurm.options]"))


def test_one_option_has_one_name_whoever_spells_it():
    assert chosen(site(("c", "2"), ("p", "low")), site(("cpus_per_task", "4"))) == {
        "cpus-per-task": "4",
        "partition": "low",
    }
    assert option_name("sbatch_cpus-per-task") == "cpus-per-task"
    assert option_name("--mem") == "mem"


def test_ways_to_say_the_same_take_each_other_s_place():
    found = choose((site(("mem", "1G")), user(("mem-per-cpu", "500M"))), ALLOWED)
    assert [(option.name, option.value) for option in found] == [("mem-per-cpu", "500M")]
    assert found[0].instead_of == (("mem", "1G", "[slurm.options]"),)
    assert chosen(site(("gres", "gpu:1")), user(("gpus", "2"))) == {"gpus": "2"}


def test_one_place_may_name_several_kinds_of_gpu_options():
    assert chosen(site(("gres", "shard:1"), ("gpus", "2"))) == {"gres": "shard:1", "gpus": "2"}


@pytest.mark.parametrize(
    "name", ["output", "o", "wrap", "chdir", "uid", "array", "dependency", "job-name", "export"]
)
def test_what_would_break_or_subvert_a_job_is_refused_to_everybody(name):
    for layer in (site((name, "x")), user((name, "x"))):
        with pytest.raises(OptionRefused, match="set by the worker itself"):
            choose((layer,), ALLOWED)


def test_a_request_may_name_only_what_is_allowed_and_is_told_what_that_is():
    with pytest.raises(OptionRefused, match=r"--slurm_account: .* allowed are exclusive, gpus, gres, mem"):
        choose((user(("account", "x")),), ALLOWED)
    with pytest.raises(OptionRefused, match="may not be chosen"):
        choose((user(("unheard", "x")),), ALLOWED)
    assert chosen(site(("account", "x"), ("plugin-option", "y"))) == {"account": "x", "plugin-option": "y"}


def test_a_request_s_value_must_be_one_and_the_site_s_is_for_slurm_to_judge():
    with pytest.raises(
        OptionRefused, match="The argument --slurm_mem: the value 'lots' of `mem` is not an amount"
    ):
        choose((user(("mem", "lots")),), ALLOWED)
    assert chosen(site(("nodes", "1,5,9"))) == {"nodes": "1,5,9"}


def test_an_unrestricted_request_may_name_anything_but_is_checked():
    layer = Layer("Docker's options", (("cpus-per-task", "2"),), is_request=True, is_restricted=False)
    assert chosen(layer) == {"cpus-per-task": "2"}
    with pytest.raises(OptionRefused):
        choose((Layer("x", (("cpus-per-task", "two"),), is_request=True, is_restricted=False),), ALLOWED)


def test_a_refusal_does_not_repeat_a_whole_book():
    with pytest.raises(OptionRefused) as seen:
        choose((user(("mem", "x" * 100_000)),), ALLOWED)
    assert len(str(seen.value)) < 300


def test_what_the_site_adds_for_gpus_may_be_an_option_of_a_plugin():
    layer = Layer("Docker's options", (("plugin-option", "y"),), is_request=True, is_restricted=False)
    assert chosen(layer) == {"plugin-option": "y"}


def test_options_in_json_are_text_numbers_and_flags():
    assert option_pairs({"mem": "4G", "ntasks": 4, "exclusive": True, "qos": None, "contiguous": False}) == (
        ("mem", "4G"), ("ntasks", "4"), ("exclusive", ""),
    )  # fmt: skip
    with pytest.raises(ValueError, match="`gres` is neither"):
        option_pairs({"gres": ["gpu:1"]})


def test_options_in_a_file_stand_one_a_line():
    assert option_lines("mem = 16G\n exclusive\n\ngres=gpu:a=1") == (
        ("mem", "16G"),
        ("exclusive", ""),
        ("gres", "gpu:a=1"),
    )
