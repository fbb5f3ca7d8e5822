"""Joins settings and parts into a store of SIFs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.image.reference import DEFAULT_REGISTRY
from girder_worker_singularity.image.rules import ImageRules
from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.source.credentials import CredentialOptions
from girder_worker_singularity.source.image_sources import SourceOptions
from girder_worker_singularity.source.proxies import Proxies
from girder_worker_singularity.source.registry_layers import registry_layers

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
    options = StoreOptions(
        convert=ConvertOptions(
            apptainer=section.apptainer,
            tmp_dir=section.tmp_dir,
            cache_dir=section.cache_dir,
            plain_http_registries=tuple(section.plain_http_registries),
            library=section.library,
            timeout_seconds=section.convert_timeout_seconds,
            ask_version=build_runner is None,
        ),
        minimum_free_bytes=section.min_free_bytes,
        sources=_sources(section),
        rules=ImageRules(
            allow=tuple(section.allow_images),
            deny=tuple(section.deny_images),
            schemes=tuple(section.schemes),
        ),
        pull_policy=section.pull_policy or None,
        verify_signatures=section.verify_signatures,
    )
    return SifStore(
        sif_image_path, runner, clock, options, build_runner=build_runner, ask_layers=registry_layers
    )


def _sources(section: SingularitySection) -> SourceOptions:
    return SourceOptions(
        places=tuple(section.sources),
        archive_dir=section.archive_dir,
        names=section.pull_names,
        credentials=CredentialOptions(
            auth_map=section.auth_map,
            username=section.docker_username.get_secret_value(),
            password=section.docker_password.get_secret_value(),
            registry=section.default_registry.lower() or DEFAULT_REGISTRY,
        ),
        proxies=Proxies(
            section.http_proxy.get_secret_value(), section.https_proxy.get_secret_value(), section.no_proxy
        ),
    )
