"""Container output as text and progress, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_worker_slurm.girder.output_text import read_output


def in_pieces(data: bytes, cuts):
    """The output as the log feed reads it: what was not consumed is handed in again with what follows."""
    text, progress, message, pending, start = "", None, None, b"", 0
    places = [*sorted(cuts), len(data)]
    for number, place in enumerate(places):
        pending += data[start:place]
        start = place
        piece = read_output(pending, final=number == len(places) - 1)
        pending = pending[piece.consumed :]
        text += piece.text
        progress = piece.progress if piece.progress is not None else progress
        message = piece.message or message
    assert pending == b""
    return text, progress, message


WORDS = [
    b"line of text\n",
    b"<filter-progress>0.25</filter-progress>",
    b"<filter-progress>0.75</filter-progress>",
    b"<filter-progress>nan</filter-progress>",
    b"<filter-comment>half &lt; done</filter-comment>",
    b"<filter-name>Segmentation</filter-name>",
    b"<filter-stage-progress>0.5</filter-stage-progress>",
    b"<filter-time>1</filter-time>",
    b"<filter-start><filter-time>1</filter-time></filter-start>",
    "größer Ω 🙂".encode(),
    b"\xff\xfe\x80",
    b"a < b <filter",
    b"<b>",
    b"x",
    b"\r",
]


@given(
    st.lists(
        st.sampled_from([word for word in WORDS if b"start" not in word and b"name" not in word]), max_size=8
    ),
    st.data(),
)
def test_where_the_output_is_cut_makes_no_difference(words, data):
    output = b"|".join(words)
    cuts = data.draw(st.lists(st.integers(0, len(output)), max_size=6))
    assert in_pieces(output, cuts) == in_pieces(output, [])


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_become_the_same_text_however_they_are_cut(data, cuts):
    assert in_pieces(data, [min(cut, len(data)) for cut in cuts]) == in_pieces(data, [])


@given(st.binary(max_size=300))
def test_what_is_held_back_is_handed_in_again(data):
    piece = read_output(data)
    assert 0 <= piece.consumed <= len(data)
    assert read_output(data, final=True).consumed == len(data)


def test_elements_are_taken_out_of_the_text_and_become_progress():
    piece = read_output(b"before\n<filter-progress>0.5</filter-progress>\nafter\n")
    assert (piece.text, piece.progress) == ("before\nafter\n", 0.5)


def test_the_last_progress_and_comment_of_a_piece_count():
    piece = read_output(
        b"<filter-progress>0.1</filter-progress><filter-comment>a</filter-comment>"
        b"<filter-progress>0.9</filter-progress><filter-comment>b &amp; c</filter-comment>"
    )
    assert (piece.progress, piece.message) == (0.9, "b & c")


def test_a_name_is_shown_where_there_is_no_comment():
    assert read_output(b"<filter-name>Blur</filter-name>").message == "Blur"


def test_a_start_element_goes_as_a_whole():
    data = b"<filter-start>\n<filter-name>Blur</filter-name>\n<filter-comment>c</filter-comment>\n</filter-start>\nx\n"
    piece = read_output(data)
    assert (piece.text, piece.message) == ("x\n", "c")


@pytest.mark.parametrize(("value", "progress"), [(b"-1", 0.0), (b"7", 1.0), (b"inf", 1.0), (b"1e-3", 0.001)])
def test_progress_stays_between_nothing_and_all(value, progress):
    assert read_output(b"<filter-progress>" + value + b"</filter-progress>").progress == progress


@pytest.mark.parametrize("value", [b"nan", b"", b"half", b"0,5", b"\xff"])
def test_a_progress_that_is_no_number_is_none(value):
    piece = read_output(b"<filter-progress>" + value + b"</filter-progress>x")
    assert (piece.text, piece.progress) == ("x", None)


def test_bytes_that_are_no_text_are_replaced():
    assert read_output(b"a\xff\xfeb\n").text == "a\ufffd\ufffdb\n"


def test_a_character_is_not_torn():
    whole = "🙂".encode()
    for length in range(1, len(whole)):
        piece = read_output(b"x" + whole[:length])
        assert (piece.text, piece.consumed) == ("x", 1)


def test_an_element_that_never_ends_is_held_back_only_for_so_long():
    piece = read_output(b"<filter-progress>" + b"x" * 70_000)
    assert piece.consumed > 60_000
    assert piece.text.startswith("<filter-progress>")


def test_an_element_that_never_ends_is_text_at_the_end():
    assert read_output(b"a<filter-progress>0.5", final=True).text == "a<filter-progress>0.5"


def test_text_that_only_looks_like_an_element_is_not_held_back():
    data = b"<filter-this is not one of ours> and more\n"
    assert read_output(data).consumed == len(data)
