"""What a person has to mend before the containers can do their work."""

from __future__ import annotations


class SetupError(Exception):
    """Says what is wrong and what to do about it."""


class ProvisionFileError(SetupError):
    """The provisioning file cannot be used as it is."""


class LoginRefused(SetupError):
    """A password of .env is not the one that the data was made with."""
