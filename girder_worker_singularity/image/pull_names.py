"""Under which name an image is pulled, if not under the one that was written. Pure.

A site may complete bare names (`tool` → `registry.example/base/tool:stable`), and may have a mirror of a registry.
Neither changes whose image it is, nor the name of its SIF.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import ImageReferenceInvalid, SettingsInvalid
from girder_worker_singularity.image.reference import ImageReference, parse_image_reference

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class PullNames:
    """How a site completes and redirects names; nothing by default."""

    default_registry: str = ""
    """The registry of names that have none, instead of Docker Hub."""
    repository_base: str = ""
    """Put before a name that has neither registry nor path."""
    default_tag: str = ""
    """The tag of names that have neither registry, tag nor digest, instead of `latest`."""
    registry_map: Mapping[str, str] = field(default_factory=dict)
    """Prefix of registry and repository → what stands there instead; the longest prefix counts."""

    def __post_init__(self) -> None:
        for name, base in (
            ("default_registry", self.default_registry),
            ("repository_base", self.repository_base),
            ("default_tag", self.default_tag),
        ):
            probe = {
                "default_registry": f"{base}/x/x",
                "repository_base": f"localhost/{base}/x",
                "default_tag": f"localhost/x:{base}",
            }[name]
            if base and not _is_reference(probe, base if name == "default_registry" else "localhost"):
                raise SettingsInvalid(f"[singularity] {name}: {base!r} cannot be part of an image's name.")
        for prefix, mirror in self.registry_map.items():
            if not _is_reference(f"{mirror}/x", mirror.partition("/")[0]):
                raise SettingsInvalid(
                    f"[singularity.registry_map] {prefix}: {mirror!r} is not a registry, with or without a path."
                )
            if not _is_reference(f"{prefix}/x", prefix.partition("/")[0]):
                raise SettingsInvalid(
                    f"[singularity.registry_map] {prefix!r} is not a registry, with or without a path."
                )

    def completed(self, reference: ImageReference) -> ImageReference:
        """The reference with what the site adds to names without a registry."""
        if reference.scheme != "docker" or reference.registry is not None:
            return reference
        repository = reference.repository
        if self.repository_base and "/" not in repository:
            repository = f"{self.repository_base.strip('/')}/{repository}"
        tag = reference.tag
        if tag is None and reference.digest is None:
            tag = self.default_tag or None
        return replace(reference, registry=self.default_registry or None, repository=repository, tag=tag)

    def pulled(self, reference: ImageReference) -> ImageReference:
        """The reference that is asked for in the network."""
        completed = self.completed(reference)
        name = completed.canonical_repository.removeprefix(f"{completed.scheme}://")
        fitting = [prefix for prefix in self.registry_map if _begins_with(name, _lower_host(prefix))]
        if not fitting or completed.scheme == "library":
            return completed
        prefix = max(fitting, key=len)
        mirror = self.registry_map[prefix].rstrip("/")
        registry, _, path = f"{mirror}{name[len(_lower_host(prefix)) :]}".partition("/")
        return replace(completed, registry=registry, repository=path)


def _lower_host(prefix: str) -> str:
    host, slash, path = prefix.rstrip("/").partition("/")
    return f"{host.lower()}{slash}{path}"


def _begins_with(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}/") or name == prefix


def _is_reference(text: str, registry: str) -> bool:
    try:
        return parse_image_reference(text).registry == registry
    except ImageReferenceInvalid:
        return False
