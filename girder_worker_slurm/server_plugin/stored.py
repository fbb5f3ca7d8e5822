"""The settings `worker_slurm.*` as Girder keeps them."""

from __future__ import annotations

import os
from typing import Any

from girder.exceptions import ValidationException
from girder.models.setting import Setting
from girder.utility import setting_utilities

from girder_worker_slurm.options.girder_settings import (
    KEY_PREFIX,
    OLD_KEY_PREFIX,
    SETTINGS,
    checked_setting,
)


def register_settings() -> None:
    """Makes the keys known to Girder, empty until an administrator sets them."""
    for key in _keys():
        setting_utilities.registerValidator(key, _validate, replace=True)
        setting_utilities.registerDefaultFunction(key, str)


def told_settings() -> dict[str, str | int]:
    """All that are set, by their names without prefix; what stands under a key's older name counts where there is no other.

    They may come from Girder's environment (``GIRDER_SETTING_WORKER_SLURM_MEM``), which nothing has checked.
    """
    # One question to the database; Setting().get asks for each key.
    stored = {doc["key"]: doc["value"] for doc in Setting().find({"key": {"$in": list(_keys())}})}
    found = {}
    # The older names first, so that the others win.
    for key, setting in sorted(_keys().items(), key=lambda each: each[0].startswith(KEY_PREFIX)):
        in_environment = f"GIRDER_SETTING_{key.replace('.', '_').upper()}" in os.environ
        value = Setting().get(key) if in_environment else stored.get(key)
        if value not in (None, ""):
            found[setting] = value
    return found


def _keys() -> dict[str, str]:
    """Each key → name of the setting."""
    return {f"{prefix}{setting}": setting for prefix in (KEY_PREFIX, OLD_KEY_PREFIX) for setting in SETTINGS}


def _validate(doc: dict[str, Any]) -> None:
    try:
        text = checked_setting(_keys()[doc["key"]], doc["value"])
    except ValueError as error:
        raise ValidationException(f"{doc['key']} {error}.", "value") from error
    # A number stays one, so that provisioning finds what it has set.
    if not isinstance(doc["value"], int):
        doc["value"] = text
