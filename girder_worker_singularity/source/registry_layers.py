"""How large an image in a registry is: the sizes of its parts, as its manifest gives them.

Only for the eye of who waits: whatever goes wrong here, the answer is "not known".
"""

from __future__ import annotations

import json
import logging
import platform
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.source.registry_connection import RegistryConnection, content_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_singularity.image.reference import ImageReference
    from girder_worker_singularity.source.registry_connection import RegistryAccess

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
_LARGEST_MANIFEST_BYTES = 4 * 1024 * 1024
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def registry_layers(reference: ImageReference, access: RegistryAccess) -> Mapping[str, int] | None:
    """Digest → bytes of all that a pull of this image fetches for this machine; None if that is not known.

    May take as long as the registry likes: call it where nobody waits.
    """
    import requests  # noqa: PLC0415 - slow to load; the command line and the settings do without

    for attempt in range(_ATTEMPTS):
        try:
            with RegistryConnection(reference, access) as registry:
                manifest = _manifest(registry, reference.digest or reference.tag or "latest")
                chosen = _digest_for_here(manifest)
                return sizes_in(_manifest(registry, chosen) if chosen is not None else manifest)
        except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.info("The size of %s is not known: %s", reference, type(error).__name__)
            # An answer that makes no sense makes none the second time.
            if attempt + 1 == _ATTEMPTS or not isinstance(
                error, (requests.ConnectionError, requests.Timeout)
            ):
                return None
    return None


def sizes_in(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Digest → bytes of the parts of one image; ValueError and its like if this is none. Pure."""
    parts = [manifest["config"], *manifest["layers"]]
    sizes = {str(part["digest"]): part["size"] for part in parts}
    if not all(isinstance(size, int) and size >= 0 for size in sizes.values()):
        raise ValueError(sizes)
    return sizes


def _manifest(registry: RegistryConnection, name: str) -> dict[str, Any]:
    answer = registry.manifest(name, method="GET")
    answer.raise_for_status()
    manifest: dict[str, Any] = json.loads(content_of(answer, _LARGEST_MANIFEST_BYTES))
    return manifest


def _digest_for_here(manifest: Mapping[str, Any]) -> str | None:
    """Which image of a list Apptainer takes here; None if this is no list."""
    if "manifests" not in manifest:
        return None
    machine = platform.machine()
    here = {"os": "linux", "architecture": _ARCHITECTURES.get(machine, machine)}
    for entry in manifest["manifests"]:
        found = entry.get("platform") or {}
        if {name: found.get(name) for name in here} == here:
            return str(entry["digest"])
    raise ValueError(here)
