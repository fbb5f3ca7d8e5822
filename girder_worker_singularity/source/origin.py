"""One place from which an image can be had now. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    @property
    def holds_sif(self) -> bool:
        """Whether a finished SIF lies there, which is fetched as it is."""
        return self.source in ("oras", "library")
