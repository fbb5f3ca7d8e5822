"""What comes from users is shown on a terminal, and obeyed by none."""

from __future__ import annotations

import io
import itertools
import json
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from girder_worker_singularity.terminal import TerminalOutput, visible, visible_json, visible_lines


def obeyed(text):
    return [
        character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "^[]0;owned^G"),
        ("\x1b[2K\x1b[1A", "^[[2K^[[1A"),
        ("a\nb\tc\rd", "a^Jb^Ic^Md"),
        ("\x9b31m\x7f", "\\x9b31m^?"),
        ("cli\u202egnp.exe", "cli\\u202egnp.exe"),
        ("a\u2028b\ud800", "a\\u2028b\\ud800"),
        ("Grüße, 组织切片 \u00a0🔬", "Grüße, 组织切片 \u00a0🔬"),
        ("", ""),
    ],
)
def test_what_a_terminal_obeys_is_written_out(text, shown):
    assert visible(text) == shown


def test_lines_stay_lines():
    assert visible_lines("a\tb\n\x1bc\n") == "a\tb\n^[c\n"


@given(st.text())
@settings(derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_is_left_that_is_obeyed(text):
    assert obeyed(visible(text)) == []
    assert set(obeyed(visible_lines(text))) <= {"\n", "\t"}
    document = visible_json({"x": text})
    assert json.loads(document) == {"x": text}
    assert set(obeyed(document)) <= {"\n"}


@given(st.text(alphabet=st.sampled_from("aä🔬\n\t\x1b\x9b\u202e")), st.lists(st.integers(0, 40)))
@settings(derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_log_may_come_in_any_pieces(text, cuts):
    data = text.encode()
    out = io.BytesIO()
    terminal = TerminalOutput(out)
    ends = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    for start, end in itertools.pairwise(ends):
        terminal.write(data[start:end])
    assert out.getvalue().decode() == visible_lines(text)


def test_bars_that_draw_themselves_anew_become_lines_and_what_is_no_text_a_mark():
    out = io.BytesIO()
    terminal = TerminalOutput(out)
    for piece in (b"10%\r", b"20%\r", b"\nend\xff\x9b\n"):
        terminal.write(piece)
    assert out.getvalue().decode() == "10%\n20%\nend\ufffd\ufffd\n"
