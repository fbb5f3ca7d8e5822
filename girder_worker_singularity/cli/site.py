"""What every command begins with: the store of this site. The only place here that reads settings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from girder_worker_singularity.assembly import make_store
from girder_worker_singularity.cli.answers import Refusal
from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_singularity.run.image_rules import parse_image_rule
from girder_worker_singularity.settings import load_singularity_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.run.image_rules import ImageRule
    from girder_worker_singularity.sif.store import SifStore


@dataclass(frozen=True)
class SingularitySite:
    """Where SIFs are, and how they are made and run here."""

    store: SifStore
    runner: CommandRunner
    clock: Clock
    apptainer: str
    rules: Mapping[str, ImageRule] = field(default_factory=dict)
    gpu_kind: Literal["nv", "rocm", "none"] = "nv"
    overlay_mib: int = 600
    archive_dir: Path | None = None

    @property
    def root(self) -> Path:
        """The directory of the SIFs."""
        return self.store.root


def site_store(environment: Mapping[str, str] | None = None) -> SingularitySite:
    """The store that this environment's settings name; raises Refusal if they name none, SettingsInvalid if wrong."""
    section = load_singularity_settings(os.environ if environment is None else environment)
    if section.sif_image_path is None:
        msg = (
            "No directory of SIFs: set SIF_IMAGE_PATH, or `sif_image_path` in [singularity] of a file that"
            " GIRDER_WORKER_SLURM_CONFIG names (a worker without either has them in `sif` of its jobs root)."
        )
        raise Refusal(msg)
    runner, clock = LocalCommandRunner(), SystemClock()
    store = make_store(section, section.sif_image_path.absolute(), runner, clock)
    rules = {pattern: parse_image_rule(words) for pattern, words in section.images.items()}
    return SingularitySite(
        store,
        runner,
        clock,
        section.apptainer,
        rules,
        section.gpu_kind,
        section.overlay_mib,
        section.archive_dir,
    )
