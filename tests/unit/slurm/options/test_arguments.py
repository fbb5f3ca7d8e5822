from __future__ import annotations

import pytest

from girder_worker_slurm.errors import OptionRefused
from girder_worker_slurm.options.arguments import split_slurm_arguments


@pytest.mark.parametrize(
    ("arguments", "kept", "said"),
    [
        (["CLI", "--slurm_mem", "4G", "in"], ["CLI", "in"], [("mem", "4G")]),
        (["CLI", "--slurm_mem=4G", "in"], ["CLI", "in"], [("mem", "4G")]),
        (["CLI", "--slurm_mem-per-cpu", "1G"], ["CLI"], [("mem-per-cpu", "1G")]),
        (["CLI", "--slurm_mem_per_cpu=1G"], ["CLI"], [("mem-per-cpu", "1G")]),
        (["CLI", "--slurm_c", "4"], ["CLI"], [("cpus-per-task", "4")]),
        # Names that begin with letters of the prefix, which the predecessors cut off.
        (["--slurm_licenses=a:1", "--slurm_mincpus=2"], [], [("licenses", "a:1"), ("mincpus", "2")]),
        (["--slurm_contiguous", "in"], ["in"], [("contiguous", "")]),
        (["--slurm_exclusive", "--other", "in"], ["--other", "in"], [("exclusive", "")]),
        (["--slurm_exclusive", "in"], ["in"], [("exclusive", "")]),
        (["--slurm_exclusive=user"], [], [("exclusive", "user")]),
        (["--slurm_contiguous=true"], [], [("contiguous", "true")]),
        (["--slurm_contiguous=false", "in"], ["in"], []),
        (["--slurm_time", "-1"], [], [("time", "-1")]),
        (["--slurm_mem=", "in"], ["in"], []),
        (["--slurm_mem", "", "in"], ["in"], []),
        (["--slurm_unheard", "in"], ["in"], [("unheard", "")]),
        (["a", "--", "--slurm_mem", "4G"], ["a", "--", "--slurm_mem", "4G"], []),
        (["--slurm", "--slurmmem=1", "x--slurm_mem"], ["--slurm", "--slurmmem=1", "x--slurm_mem"], []),
        (["--slurm_ntasks", 4, 7], [7], [("ntasks", "4")]),
    ],
)
def test_arguments_for_slurm_are_taken_out_and_no_other(arguments, kept, said):
    assert split_slurm_arguments(arguments) == (tuple(kept), tuple(said))


def test_what_is_no_text_yet_is_left_alone():
    an_input = object()
    assert split_slurm_arguments([an_input, "--slurm_mem=1G"]) == ((an_input,), (("mem", "1G"),))


@pytest.mark.parametrize(
    "arguments", [["--slurm_mem"], ["--slurm_mem", "--other"], ["--slurm_mem", object()]]
)
def test_a_value_that_is_not_there_is_refused_and_nothing_else_taken_for_it(arguments):
    with pytest.raises(OptionRefused, match="--slurm_mem has no value; it takes an amount of memory"):
        split_slurm_arguments(arguments)
