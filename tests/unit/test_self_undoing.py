"""What tests make on the machine does not stay, however far the making came."""

from __future__ import annotations

import pytest

from tests.support.self_undoing import SelfUndoing


class Thing(SelfUndoing):
    def __init__(self, *, fails: bool = False):
        self.fails = fails
        self.undone: list[str] = []

    def _make(self, undo):
        undo.callback(self.undone.append, "first")
        undo.callback(self.undone.append, "second")
        if self.fails:
            raise OSError("halfway")
        undo.callback(self.undone.append, "third")


def test_all_is_undone_the_last_first():
    with Thing() as thing:
        assert thing.undone == []
    assert thing.undone == ["third", "second", "first"]


def test_what_was_made_is_undone_when_the_rest_fails():
    thing = Thing(fails=True)
    with pytest.raises(OSError, match="halfway"), thing:
        pytest.fail("it was not made")
    assert thing.undone == ["second", "first"]
