"""The worker's log has one record where one thing happened, whatever users call their things."""

from __future__ import annotations

import io
import logging

from girder_worker_slurm.celery_worker.log_lines import show_lines_as_they_are


def logged(write):
    out = io.StringIO()
    logger = logging.Logger("test")  # noqa: LOG001 - one that no other test sees
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    logger.addHandler(handler)
    show_lines_as_they_are(logger=logger, loglevel=20, logfile=None)
    write(logger)
    return out.getvalue()


def test_a_name_cannot_forge_a_line_or_give_the_terminal_orders():
    title = "x\n[INFO] Job a1 succeeded\x1b[1A\x1b]0;owned\x07"
    text = logged(lambda logger: logger.error("Job %s: %s", "a1", title))
    assert text == "[ERROR] Job a1: x\n    [INFO] Job a1 succeeded^[[1A^[]0;owned^G\n"


def test_neither_can_an_error():
    def write(logger):
        try:
            msg = "bad\n[INFO] all is well\x1b[2J"
            raise ValueError(msg)  # noqa: TRY301
        except ValueError:
            logger.exception("It failed")

    text = logged(write)
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith("[")] == ["[ERROR] It failed"]


def test_a_record_whose_words_do_not_fit_is_left_to_the_handler(capsys):
    logged(lambda logger: logger.error("%d", "no number"))
    assert "Logging error" in capsys.readouterr().err
