"""An image reference such as `host:5000/team/name:tag@sha256:...`, taken apart. Pure.

Without a scheme, or with `docker://`, it names a Docker image. `oras://` and `library://` name a SIF that lies in a
registry or in a Singularity library.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from girder_worker_singularity.errors import ImageReferenceInvalid

Scheme = Literal["docker", "oras", "library"]

DEFAULT_REGISTRY = "docker.io"
_DOCKER_HUB = frozenset(
    {"", DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
)

# The grammar of the OCI distribution specification, and Docker's rule for what is a host name.
_REGISTRY = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_LONGEST_NAME = 255
_LONGEST_STEM = 190  # leaves room for `.sif.json` and temporary names within the 255 bytes of a file name


@dataclass(frozen=True)
class ImageReference:
    """The parts of a reference as they were written; make it with `parse_image_reference`."""

    registry: str | None
    repository: str
    tag: str | None
    digest: str | None
    scheme: Scheme = "docker"

    def __str__(self) -> str:
        scheme = "" if self.scheme == "docker" else f"{self.scheme}://"
        return f"{scheme}{self._name}"

    @property
    def _name(self) -> str:
        registry = f"{self.registry}/" if self.registry else ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{registry}{self.repository}{tag}{digest}"

    @property
    def canonical_registry(self) -> str:
        """The registry that serves the image, Docker Hub when none is named; empty for the site's own library."""
        if self.scheme == "library":
            return (self.registry or "").lower()
        # The usual port of https says nothing; rules must not be got round by writing it.
        registry = re.sub(r":0*443$", "", (self.registry or "").lower())
        return DEFAULT_REGISTRY if registry in _DOCKER_HUB else registry

    @property
    def canonical_repository(self) -> str:
        """Registry and repository in full: equal for two references exactly if they name one repository."""
        if self.scheme != "docker":
            return f"{self.scheme}://{self.canonical_registry}/{self.repository}"
        repository = self.repository
        if self.canonical_registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = f"library/{repository}"
        return f"{self.canonical_registry}/{repository}"

    @property
    def canonical(self) -> str:
        """The reference in full: equal for two references exactly if they ask for the same image."""
        if self.digest:
            return f"{self.canonical_repository}@{self.digest}"  # beside a digest a tag decides nothing
        return f"{self.canonical_repository}:{self.tag or 'latest'}"

    @property
    def uri(self) -> str:
        """What Apptainer takes to pull this image from its registry or library."""
        if self.scheme == "library" and not self.registry:
            return f"library://{self._name}"
        if self.scheme != "docker":
            return self.canonical
        # "Docker references with both a tag and digest are currently not supported" (Apptainer 1.4.5),
        # which `canonical` avoids.
        return f"docker://{self.canonical}"

    @property
    def sif_stem(self) -> str:
        """The name of the SIF without `.sif`."""
        stem = re.sub(r"[/:@]", "_", self._name)
        if self.scheme != "docker":
            stem = f"{self.scheme}+{stem}"  # no Docker reference has a plus sign
        if len(stem) > _LONGEST_STEM:
            return f"{stem[: _LONGEST_STEM - 11]}~{self._fingerprint}"
        return stem

    @property
    def sif_name(self) -> str:
        """The file name that the Digital Slide Archive uses: the reference with `/`, `:` and `@` as `_`."""
        return f"{self.sif_stem}.sif"

    @property
    def unambiguous_sif_name(self) -> str:
        """A file name that no other image has, for when `sif_name` is taken by another image."""
        # No reference can hold a `~`: otherwise somebody could choose an image whose plain name is this one.
        return f"{self.sif_stem}~{self._fingerprint}.sif"

    @property
    def _fingerprint(self) -> str:
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:10]


def parse_image_reference(text: str) -> ImageReference:
    """The parts of an image reference, or ImageReferenceInvalid with the part that is wrong."""
    scheme, rest = _split_scheme(text)
    if not rest or len(rest) > 2 * _LONGEST_NAME + 256:
        raise ImageReferenceInvalid(f"{_shown(text)} is not an image reference.")
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ImageReferenceInvalid(f"{_shown(text)} ends in a malformed digest.")
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        name, colon, tag = rest, "", ""
    if colon and not _TAG.fullmatch(tag):
        raise ImageReferenceInvalid(f"{_shown(text)} has a malformed tag.")
    registry, repository = _split_registry(name)
    if registry is not None and not _REGISTRY.fullmatch(registry):
        raise ImageReferenceInvalid(f"{_shown(text)} names a malformed registry.")
    if len(repository) > _LONGEST_NAME or not _REPOSITORY.fullmatch(repository):
        hint = " (upper-case letters are not allowed)" if repository.lower() != repository else ""
        raise ImageReferenceInvalid(f"{_shown(text)} has a malformed repository name{hint}.")
    if scheme == "oras" and registry is None:
        raise ImageReferenceInvalid(f"{_shown(text)} names no registry, which oras:// needs.")
    if scheme == "library" and digest:
        raise ImageReferenceInvalid(f"{_shown(text)} has a digest, which library:// does not know.")
    return ImageReference(registry, repository, tag or None, digest or None, scheme)


def _split_scheme(text: str) -> tuple[Scheme, str]:
    schemes: tuple[Scheme, ...] = ("docker", "oras", "library")
    for scheme in schemes:
        if text.startswith(f"{scheme}://"):
            return scheme, text[len(scheme) + 3 :]
    return "docker", text


def _split_registry(name: str) -> tuple[str | None, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.startswith("[")):
        return first, rest
    return None, name


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
