"""How `girder-slurm` ends: as `girder-singularity` does, and without a password in what it says."""

from __future__ import annotations

from girder_worker_singularity.cli.answers import (
    NO,
    USAGE,
    OneLineErrors,
    Refusal,
    Unclear,
    in_one_line,
    print_json,
)
from girder_worker_slurm.errors import SlurmWorkerError

__all__ = ["NO", "USAGE", "Refusal", "SlurmErrors", "Unclear", "print_json"]


class SlurmErrors(OneLineErrors):
    """One line for the errors of the worker too."""

    def in_words(self, error: Exception) -> str:
        """What went wrong, in one line."""
        # A wrong setting may be an address with a password.
        from girder_worker_slurm.doctor.secret_words import hiding  # noqa: PLC0415 - only when it is needed

        words = in_one_line(str(error)) if isinstance(error, SlurmWorkerError) else super().in_words(error)
        return hiding(None)(words)
