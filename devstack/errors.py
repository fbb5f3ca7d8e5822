"""What can go wrong, said in one line with the remedy."""

from __future__ import annotations


class DevstackError(Exception):
    """A problem a person can act on; the text is one line: what is wrong, then what to do."""


class UsageError(DevstackError):
    """The command line asks for something that does not exist."""


class CommandFailedError(DevstackError):
    """A program we called ended with an error or did not end in time."""
