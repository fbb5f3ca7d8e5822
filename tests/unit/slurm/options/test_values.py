from __future__ import annotations

import math

import pytest

from girder_worker_slurm.options.catalogue import (
    EXCLUSIVE_GROUPS,
    OPTIONS,
    USUALLY_ALLOWED,
    Kind,
    is_reserved,
)
from girder_worker_slurm.options.values import checked, gpus_of, memory_mib, minutes, nodes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("90:30", 90.5), ("1:30:00", 90), ("2-12", 3600), ("1-0:30", 1470), ("1-00:00:30", 1440.5),
        ("0", math.inf), ("00", math.inf), ("0:00", math.inf), ("0-0", math.inf), ("0:30", 0.5), ("UNLIMITED", math.inf), ("infinite", math.inf),
        ("", None), ("soon", None), ("1:2:3:4", None), ("-1", None), ("1-", None), ("1.5", None), ("٣", None),
    ],
)  # fmt: skip
def test_times_are_read_as_sbatch_does(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4000", 4000), ("4G", 4096), ("1t", 1024**2), ("2048K", 2), ("0", math.inf), ("8GB", 8192)],
)
def test_memory_is_in_mebibytes(text, expected):
    assert memory_mib(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("2", 2), ("2-4", 4), ("4-2", 0), ("0", 0), ("x", 0), ("", 0)]
)
def test_nodes_are_the_most_that_is_meant(text, expected):
    assert nodes(text) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gres", "gpu:2", 2), ("gres", "gpu", 1), ("gres", "gpu:a100:3,shard:2", 3), ("gres", "license:4", 0),
        ("gres", "gpu:a100", 1), ("gpus", "4", 4), ("gpus-per-node", "a100:1,v100:2", 3),
        ("gres", "gpu:1k", 1024), ("gres", "gpu:2080ti", 1), ("gpus", "²", 0), ("gpus", "9" * 5000, 10**9),
    ],
)  # fmt: skip
def test_gpus_are_counted(name, value, expected):
    assert gpus_of(name, value) == expected


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind.TEXT, ["normal", "a&b", "größer"], ["", "  ", "a\nb", "a\x85b", "a\u2028b", "\ud800"]),
        (Kind.COUNT, ["1", " 72 "], ["", "-1", "1.5", "many", "1 2"]),
        (Kind.NODES, ["2", "2-4"], ["0", "4-2", "n1"]),
        (Kind.TIME, ["1:00:00", "2-0", "unlimited"], ["tomorrow", "", "1h"]),
        (Kind.MEMORY, ["16G", "0", "500"], ["", "16 GiB", "lots", "-1", "1.5G"]),
        (Kind.GRES, ["gpu:2", "gpu:a100:1,shard:4"], ["", "gpu:2;id", "gpu 2", ","]),
        (Kind.GPUS, ["2", "a100:2"], ["", "all", "-1"]),
        (Kind.FLAG, ["", "true"], ["false", "5"]),
        (Kind.OPTIONAL, ["", "user"], ["a\rb"]),
    ],
)
def test_a_value_is_meant_or_refused_with_what_is_wanted(kind, good, bad):
    for value in good:
        checked(kind, value)
    for value in bad:
        with pytest.raises(ValueError, match=r"is not|has control"):
            checked(kind, value)


def test_a_value_that_no_command_line_can_hold_is_refused():
    with pytest.raises(ValueError, match="200000 characters"):
        checked(Kind.TEXT, "x" * 200_000)


def test_flags_need_no_value():
    assert checked(Kind.FLAG, "yes") == ""
    assert checked(Kind.OPTIONAL, "true") == ""


def test_the_catalogue_agrees_with_itself():
    letters = [option.letter for option in OPTIONS.values() if option.letter]
    assert len(letters) == len(set(letters))
    assert not [name for name in OPTIONS if is_reserved(name)]
    assert set(USUALLY_ALLOWED) <= set(OPTIONS)
    assert all(group <= set(OPTIONS) for group in EXCLUSIVE_GROUPS)
