"""Which images a site allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import ImageNotAllowed

if TYPE_CHECKING:
    from girder_worker_singularity.image.reference import ImageReference


@dataclass(frozen=True)
class ImageRules:
    """Patterns as a shell has them, for whole canonical references; `*` includes `/`. Deny wins."""

    allow: tuple[str, ...] = ()
    """Empty: all that is not denied."""
    deny: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    """Schemes besides `docker` that a reference may have."""

    def check(self, reference: ImageReference) -> None:
        """Nothing, or ImageNotAllowed naming the rule."""
        if reference.scheme != "docker" and reference.scheme not in self.schemes:
            raise ImageNotAllowed(
                f"{reference} is not allowed here: {reference.scheme}:// is not in `schemes` of [singularity]."
            )
        for pattern in self.deny:
            if fnmatchcase(reference.canonical, pattern):
                raise ImageNotAllowed(
                    f"{reference.canonical} is not allowed here: `deny_images` of [singularity] has {pattern!r}."
                )
        if self.allow and not any(fnmatchcase(reference.canonical, pattern) for pattern in self.allow):
            raise ImageNotAllowed(
                f"{reference.canonical} is not allowed here: no pattern of `allow_images` of [singularity] fits."
            )
