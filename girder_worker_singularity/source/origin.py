"""One place from which an image can be had now, and how large the image is. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

SourceName = Literal[
    "docker-daemon", "docker", "oras", "library", "docker-archive", "oci-archive", "oci", "sandbox"
]
#: These are asked over the network.
REMOTE: frozenset[SourceName] = frozenset({"docker", "oras", "library"})


@dataclass(frozen=True)
class Origin:
    """Where Apptainer finds an image, and what is known of its content."""

    source: SourceName
    uri: str
    """What Apptainer takes."""
    registry: str = ""
    """Who is asked, if it comes over the network."""
    digest: str | None = None
    """The digest a registry has for it, if known."""
    stamp: str | None = None
    """Differs between any two contents, as long as the same place is asked; None if the digest has to tell."""
    size_bytes: int | None = None
    """Roughly what is read from it, if that is known now; a registry is asked for more, see `ExpectedBytes`."""

    @property
    def holds_sif(self) -> bool:
        """Whether a finished SIF lies there, which is fetched as it is."""
        return self.source in ("oras", "library")


@dataclass(frozen=True)
class ExpectedBytes:
    """What is known of an image's size before it is there."""

    parts: Mapping[str, int] = field(default_factory=dict)
    """Digest → bytes; empty if only the sum is known, or nothing."""
    total: int | None = None
