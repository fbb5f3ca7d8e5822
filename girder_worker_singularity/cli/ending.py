"""What happens when somebody ends a command while an image is being made."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def tidied_up() -> Iterator[None]:
    """Lets interrupt, hangup and termination end this block as an error does, so that Apptainer ends and nothing is left.

    The program ends with 128 and the signal's number. Only for a main thread.
    """

    def end(number: int, _frame: object) -> NoReturn:
        # Tidying up takes a moment, and a second Ctrl-C would spoil it.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # under nohup, say
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
