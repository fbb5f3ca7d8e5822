"""Whether a Docker engine on this host already has an image. Cheap and silent where there is no engine."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_singularity.image.reference import ImageReference

DEFAULT_SOCKET = Path("/var/run/docker.sock")
_TIMEOUT_SECONDS = 5
_WITH_PLAIN_LAYERS = frozenset({"overlay2", "vfs"})


@dataclass(frozen=True)
class EngineImage:
    """An image that the engine has."""

    image_id: str
    """Differs between any two contents, as long as the same engine is asked."""
    digest: str | None
    """As a registry knows it, if it came from one."""
    saved_bytes: int | None = None
    """Roughly what `docker save` makes of it; None if that is not known."""


def engine_image(
    reference: ImageReference, environment: Mapping[str, str] | None = None
) -> EngineImage | None:
    """The image in the local engine, or None if there is no engine or it does not have it."""
    environment = os.environ if environment is None else environment
    if not _has_engine(environment):
        return None
    import docker  # noqa: PLC0415 - 0.3 s that only hosts with an engine should pay
    import docker.errors  # noqa: PLC0415

    try:
        client = docker.from_env(timeout=_TIMEOUT_SECONDS, environment=dict(environment))
        try:
            image = client.images.get(str(reference))
            return EngineImage(
                str(image.id), _repository_digest(reference, image.attrs), _saved_bytes(image.attrs)
            )
        finally:
            client.close()
    except (docker.errors.DockerException, OSError, ValueError):
        return None


def _has_engine(environment: Mapping[str, str]) -> bool:
    host = environment.get("DOCKER_HOST", "")
    if host and not host.startswith("unix://"):
        return True
    socket = Path(host.removeprefix("unix://")) if host else DEFAULT_SOCKET
    try:
        return stat.S_ISSOCK(socket.stat().st_mode) and os.access(socket, os.R_OK | os.W_OK)
    except OSError:
        return False


def _saved_bytes(attributes: Mapping[str, Any]) -> int | None:
    # Engines that keep images with containerd save compressed layers, of a size that they do not tell.
    driver, size = (attributes.get("GraphDriver") or {}).get("Name"), attributes.get("Size")
    return size if driver in _WITH_PLAIN_LAYERS and isinstance(size, int) and size > 0 else None


def _repository_digest(reference: ImageReference, attributes: Mapping[str, Any]) -> str | None:
    if reference.digest:
        return reference.digest
    known = attributes.get("RepoDigests") or []
    for text in known:
        repository, at, digest = str(text).partition("@")
        name = replace(reference, tag=None, digest=None)
        if at and repository in (str(name), name.canonical_repository):
            return digest
    return None
