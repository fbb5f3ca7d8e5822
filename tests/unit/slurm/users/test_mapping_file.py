"""A file that makes no sense stops the start, with its line and what to write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_slurm.errors import SettingsInvalid
from girder_worker_slurm.users.mapping import UserMapping
from girder_worker_slurm.users.mapping_file import parse_mapping, read_mapping

WRONG = [
    ("", 1, "is empty; write a list `users:`"),
    ("users: [", 1, "is not YAML"),
    ("users:\n- login: a\n  account: &x [\n", 4, "is not YAML"),
    ("- login: ada", 1, "names with values are expected here, as `users:`"),
    ("user:\n- login: ada", 1, "unknown key `user`; known: users, users_id_mapping"),
    ("users: ada", 1, "`users` is a list: each entry begins with `- `"),
    ("users:\n- ada", 2, "names with values are expected here, as `login:`"),
    ("users:\n- account: a", 2, "for whom it is (login, email, group, group_id, id"),
    ("users:\n- login: a\n  group: b", 2, "not login and group"),
    ("users:\n- login: a\n  mail: b", 3, "unknown key `mail`"),
    ("users:\n- login: a\n  login: b", 3, "`login` stands here twice"),
    ("users:\n- login: []", 2, "`login` is empty"),
    ("users:\n- login: ''", 2, "`login` is empty"),
    ("users:\n- login: [{a: b}]", 2, "one value is expected here"),
    ("users:\n- login: a\n  account:", 3, "sets `account` to nothing"),
    ("users:\n- login: a\n  account: [b]", 3, "one value is expected here"),
    ("users:\n- login: a\n  options:\n    mem: 1G\n    output: /x", 5, "`output`, which only the worker itself may"),
    ("users:\n- login: a\n  account: b\n  options:\n    account: c", 5, "`account` is set twice"),
    ("users:\n- login: a\n  options: mem", 3, "names with values are expected"),
    ("users:\n- login: a\n  limits: {memory: 1G}", 3, "`memory` is not known; known are time"),
    ("users:\n- login: a\n  limits:\n    gpus: many", 4, "`gpus` is 'many', which is not a whole number"),
    ("users:\n- login: a\n  allow_options: mem", 3, "`allow_options` is a list"),
    ("users:\n- login: a\n  allow_options: [mem, sudo]", 3, "`sudo` is no option of sbatch"),
    ("users_id_mapping:\n- login: a", 2, "unknown key `login`; known: mail"),
    ("users:\n- login: a\n  unix_user: -u root", 3, "'-u root' is not the name of a Unix user"),
    ("users:\n- login: a\n  unix_user: a,b", 3, "is not the name of a Unix user"),
    ("users_id_mapping:\n- mail: a@b.c\n  mapped_user: ../root", 3, "is not the name of a Unix user"),
    ("users_id_mapping:\n- mapped_user: kirby\n  ssh_private_key_b64: c2VjcmV0", 2, "`mail`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "words"), WRONG)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, line, words):
    file = tmp_path / "users.yaml"
    file.write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        read_mapping(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert words in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_values_are_taken_as_they_are_written():
    # YAML makes 5400 of 1:30:00, True of yes, and 8 of 0o10.
    text = "users:\n- login: a\n  options: {time: 1:30:00, exclusive: true, comment: 007}\n  limits: {time: 1:30:00}"
    (entry,) = parse_mapping(text).entries
    assert entry.options == (("time", "1:30:00"), ("exclusive", ""), ("comment", "007"))
    assert entry.limits.time_minutes == 90


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_file_that_cannot_be_read_is_told(tmp_path, content):
    file = tmp_path / "users.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsInvalid, match=r"see `mapping_file` in \[users\]"):
        read_mapping(file)


def test_no_file_is_no_mapping():
    assert read_mapping(None) == UserMapping()


@given(st.text())
def test_any_text_is_a_mapping_or_is_told(text):
    line = 1
    try:
        assert parse_mapping(text).is_set
    except ValueError as error:
        line = error.line
    assert 1 <= line <= text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + 2
