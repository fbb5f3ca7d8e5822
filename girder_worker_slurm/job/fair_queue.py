"""A queue in which each user has a line of his own, and the lines take turns. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served for each user; round-robin between users. Both ways take the same time at any length."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()

    def put(self, user: str, item: Item, *, first: bool = False) -> None:
        """Adds an item at the end of its user's line, or at its beginning."""
        line = self._lines.setdefault(user, deque())
        (line.appendleft if first else line.append)(item)

    def take(self, is_open: Callable[[str], bool] = lambda _user: True) -> Item | None:
        """The next item of the user whose turn it is, of those whose line is open; None if there is none."""
        for _ in range(len(self._lines)):
            user, line = self._lines.popitem(last=False)
            if not is_open(user):
                self._lines[user] = line
                continue
            item = line.popleft()
            if line:
                self._lines[user] = line
            return item
        return None

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)
