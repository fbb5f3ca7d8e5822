"""Joins settings and parts into a store of SIFs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.store import SifStore, StoreOptions

if TYPE_CHECKING:
    from pathlib import Path

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.settings import SingularitySection


def make_store(
    section: SingularitySection,
    sif_image_path: Path,
    runner: CommandRunner,
    clock: Clock,
    *,
    build_runner: CommandRunner | None = None,
) -> SifStore:
    """The store of SIFs in this directory, as the section wants it; `build_runner` converts elsewhere than here."""
    convert = ConvertOptions(
        apptainer=section.apptainer,
        tmp_dir=section.tmp_dir,
        cache_dir=section.cache_dir,
        plain_http_registries=tuple(section.plain_http_registries),
        timeout_seconds=section.convert_timeout_seconds,
        ask_version=build_runner is None,
    )
    options = StoreOptions(convert=convert, minimum_free_bytes=section.min_free_bytes)
    return SifStore(sif_image_path, runner, clock, options, build_runner=build_runner)
