"""What every command begins with: the store of this site. The only place here that reads settings."""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_singularity.cli.answers import Refusal
from girder_worker_singularity.clock import SystemClock
from girder_worker_singularity.command_runner import LocalCommandRunner
from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.store import SifStore, StoreOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner


@dataclass(frozen=True)
class SingularitySite:
    """Where SIFs are, and how they are made and run here."""

    store: SifStore
    runner: CommandRunner
    clock: Clock
    apptainer: str

    @property
    def root(self) -> Path:
        """The directory of the SIFs."""
        return self.store.root


def site_store(environment: Mapping[str, str] | None = None) -> SingularitySite:
    """The store that this environment's settings name; raises Refusal if they name none."""
    values = _section(os.environ if environment is None else environment)
    root = values.get("sif_image_path", "")
    if not root:
        msg = (
            "No directory of SIFs: set SIF_IMAGE_PATH, or `sif_image_path` in [singularity] of a file that"
            " GIRDER_WORKER_SLURM_CONFIG names (a worker without either has them in `sif` of its jobs root)."
        )
        raise Refusal(msg)
    runner, clock = LocalCommandRunner(), SystemClock()
    apptainer = values.get("apptainer") or "apptainer"
    convert = ConvertOptions(
        apptainer=apptainer,
        tmp_dir=_path(values.get("tmp_dir")),
        cache_dir=_path(values.get("cache_dir")),
        plain_http_registries=tuple(values.get("plain_http_registries", "").replace(",", " ").split()),
    )
    least = int(values.get("min_free_bytes") or StoreOptions.minimum_free_bytes)
    options = StoreOptions(convert=convert, minimum_free_bytes=least)
    return SingularitySite(SifStore(Path(root).absolute(), runner, clock, options), runner, clock, apptainer)


def _section(environment: Mapping[str, str]) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(environment.get("GIRDER_WORKER_SLURM_CONFIG", "").split(":"), encoding="utf-8")
    values = dict(parser["singularity"]) if parser.has_section("singularity") else {}
    return {**values, "sif_image_path": environment.get("SIF_IMAGE_PATH") or values.get("sif_image_path", "")}


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
