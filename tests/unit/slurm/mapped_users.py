"""Girder users of whom some have a Unix user."""

from __future__ import annotations

from girder_worker_slurm.users.mapping_file import parse_mapping

#: Users whom every machine has.
MAPPING = parse_mapping(
    "users:\n- login: ada\n  unix_user: daemon\n- login: bob\n  unix_user: bin\n- login: eve"
)
