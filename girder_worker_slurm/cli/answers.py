"""How the command line ends: errors are one line on stderr, with an exit code that says what they mean."""

from __future__ import annotations

import json
from typing import Any

import click

from girder_worker_slurm.errors import SlurmWorkerError

#: The answer is no.
NO = 1
#: The command was not understood, or not clear enough.
USAGE = 2


class Refusal(click.ClickException):
    """Ends the program with one line on stderr: the answer is no."""

    exit_code = NO

    def show(self, file: Any = None) -> None:
        """Prints the line."""
        click.echo(f"girder-slurm: {self.format_message()}", err=file is None, file=file)


class Unclear(Refusal):
    """Ends the program because what was asked may mean several things."""

    exit_code = USAGE


class OneLineErrors(click.Group):
    """Turns what went wrong below into one line, unless --debug asks for the whole story."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a site needs them, not by the alphabet."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            # A wrong setting may be an address with a password.
            from girder_worker_slurm.doctor.secret_words import hiding  # noqa: PLC0415 - only when it is needed

            raise Refusal(hiding(None)(_words(error))) from error


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _words(error: Exception) -> str:
    if isinstance(error, SlurmWorkerError):
        return " ".join(str(error).split())
    if isinstance(error, PermissionError):
        return f"{error.filename} is closed to this user; run this as the user of the worker."
    if isinstance(error, OSError):
        return f"{error.filename or 'The system'}: {error.strerror or error}."
    return f"Unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)."
