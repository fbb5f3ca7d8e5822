"""Things that tests make on the machine, and that are gone afterwards, however far the making came."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class SelfUndoing(ABC):
    """A context manager that notes beside each step of its making how that is undone."""

    @abstractmethod
    def _make(self, undo: contextlib.ExitStack) -> None:
        """Makes it; what is registered with `undo` is done at the end, the last first."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._make(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
