"""The worker's own log: names and titles in it come from users and messages, and must not forge or hide lines."""

from __future__ import annotations

import logging
from typing import Any

from girder_worker_singularity.terminal import visible_lines


class VisibleLines(logging.Filter):
    """Writes out what a terminal would obey, and indents all lines of a record but its first."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the record; none is left out."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the handler reports it
            return True
        record.msg, record.args = visible_lines(text).replace("\n", "\n    "), ()
        if record.exc_info and not record.exc_text:
            trace = logging.Formatter().formatException(record.exc_info)
            record.exc_text = visible_lines(trace).replace("\n", "\n    ")
        return True


def show_lines_as_they_are(*, logger: logging.Logger, **_: Any) -> None:
    """For Celery's signals after a logger was set up."""
    for handler in logger.handlers:
        handler.addFilter(VisibleLines())
