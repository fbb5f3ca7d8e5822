"""How a command line ends: errors are one line on stderr, with an exit code that says what they mean."""

from __future__ import annotations

from typing import Any

import click

from girder_worker_singularity.command_runner import CommandError
from girder_worker_singularity.errors import ContainerError
from girder_worker_singularity.terminal import visible_json, visible_lines

#: The answer is no.
NO = 1
#: The command was not understood, or not clear enough.
USAGE = 2


class Refusal(click.ClickException):
    """Ends the program with one line on stderr: the answer is no."""

    exit_code = NO
    program = ""

    def show(self, file: Any = None) -> None:
        """Prints the line."""
        start = f"{self.program}: " if self.program else ""
        click.echo(visible_lines(f"{start}{self.format_message()}"), err=file is None, file=file)


class Unclear(Refusal):
    """Ends the program because what was asked may mean several things, or nothing."""

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
        except Refusal as refusal:
            refusal.program = str(self.name)
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            ended = Refusal(self.in_words(error))
            ended.program = str(self.name)
            raise ended from error

    def in_words(self, error: Exception) -> str:
        """What went wrong, in one line for the person at the keyboard."""
        if isinstance(error, (ContainerError, CommandError)):
            return in_one_line(str(error))
        if isinstance(error, PermissionError):
            return f"{error.filename} is closed to this user; run this as the user of the worker."
        if isinstance(error, OSError):
            return f"{error.filename or 'The system'}: {error.strerror or error}."
        return f"Unexpected {type(error).__name__}: {in_one_line(str(error))} (--debug shows where)."


def in_one_line(text: str) -> str:
    """The same words without line breaks."""
    return " ".join(text.split())


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(visible_json(value))
