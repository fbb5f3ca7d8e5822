"""The settings of images and containers: section ``[singularity]`` of the configuration files."""

from __future__ import annotations

import json
import os
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from girder_worker_singularity.settings_file import read_values, setting, settings_files

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTION = "singularity"


class SingularitySection(BaseModel):
    """How Docker images become SIFs and how containers run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sif_image_path: Path | None = setting(
        None,
        "Directory of the SIFs. Worker and compute nodes must see it. Empty: `sif` in the jobs root.",
        env=("SIF_IMAGE_PATH",),
    )
    apptainer: str = setting(
        "apptainer",
        "The apptainer (or singularity) program, by name or absolute path, here and on the nodes.",
    )
    plain_http_registries: list[str] = setting([], "Registries spoken to without TLS, as host:port.")
    tmp_dir: Path | None = setting(
        None,
        "Where images are unpacked for conversion. Empty: the system's temporary directory (TMPDIR), often small.",
    )
    cache_dir: Path | None = setting(None, "Apptainer's cache of layers. Empty: none is kept.")
    convert_timeout_seconds: float = setting(7200.0, "When a conversion is given up.")
    min_free_bytes: int = setting(
        2_000_000_000, "A conversion does not start with less free space than this."
    )
    prune_unused_days: float = setting(
        0.0,
        "Remove SIFs that no job used for this many days; images that come back are converted again. 0: never.",
    )
    max_store_bytes: int = setting(
        0,
        "Remove the SIFs that were not used for longest while all together are larger than this. 0: no limit.",
    )
    run_options: dict[str, Any] = setting(
        {}, "Docker run options for every container, as JSON.", env=("GIRDER_WORKER_DOCKER_RUN_OPTIONS",)
    )

    @field_validator("run_options", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if isinstance(value, str):
            return json.loads(value) if value.strip() else {}
        return value


def load_singularity_settings(environment: Mapping[str, str] | None = None) -> SingularitySection:
    """The section ``[singularity]`` of the files that GIRDER_WORKER_SLURM_CONFIG names, and of the environment.

    The same as the worker sees it; the files' other sections are not looked at. Raises SettingsInvalid naming file
    and line.
    """
    env = os.environ if environment is None else environment
    read = read_values({SECTION: SingularitySection}, settings_files(env), env, skip_other_sections=True)
    try:
        return SingularitySection(**read.values.get(SECTION, {}))
    except ValidationError as error:
        raise read.invalid(error, section=SECTION) from error
