"""Directories and files of the site that containers get to see: licences, reference data. Pure.

A table in the configuration, a path on the node on the left, on the right where it is in the container and for whom.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from girder_worker_singularity.run.mounts import Mount

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KNOWN_WORDS = "ro, rw, images=PATTERN ..., users=LOGIN ..., groups=GROUP ..."
#: What the worker itself, or Apptainer, puts into every container.
_TAKEN = ("/mnt/girder_worker", "/mnt/girder_direct_worker", "/.singularity.d", "/dev", "/proc", "/sys", "/tmp", "/var/tmp")  # noqa: S108 # fmt: skip
#: Apptainer's options and our event files would need them quoted; nobody's reference data needs them.
_ID = re.compile(r"[0-9a-f]{24}", re.IGNORECASE)
_STRANGE = re.compile(r"[\x00-\x1f\x7f:,\"\\]")


@dataclass(frozen=True)
class JobOwner:
    """What is known of who runs a job in Girder; nobody, unless it says otherwise."""

    login: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Id of each group → its name."""


NOBODY = JobOwner()


@dataclass(frozen=True)
class SiteBind:
    """A path of the node in the containers of some images."""

    source: str
    destination: str
    read_only: bool = True
    images: tuple[str, ...] = ()
    """Patterns; none of them: all images."""
    users: tuple[str, ...] = ()
    """Logins in Girder."""
    groups: tuple[str, ...] = ()
    """Names or ids of groups in Girder. Without users and groups it is for everybody."""

    @property
    def mount(self) -> Mount:
        """It as a mount."""
        return Mount(self.source, self.destination, read_only=self.read_only)

    def fits(self, image_names: Sequence[str], owner: JobOwner) -> bool:
        """Whether containers get it of an image that is spelt in any of these ways, run by this user."""
        for_image = not self.images or any(
            fnmatch.fnmatchcase(name, pattern) for name in image_names for pattern in self.images
        )
        if not self.users and not self.groups:
            return for_image
        # Upper and lower case are one: Girder has no two users, and no two groups, that differ in it alone.
        return for_image and (
            owner.login.lower() in (login.lower() for login in self.users)
            # An id is never read as a name: anybody may found a group that is called like one.
            or any(
                (id_ if _ID.fullmatch(word) else name).lower() == word.lower()
                for word in self.groups
                for id_, name in owner.groups.items()
            )
        )


def parse_site_bind(source: str, text: str) -> SiteBind:
    """One line of the table: `/data/atlas = /atlas, ro, images=team/*`; raises ValueError naming what makes no sense.

    Without a place in the container it is at the same place as on the node.
    """
    words = [word.strip() for word in re.split(r"[,\n]", text) if word.strip()]
    destination = words.pop(0) if words and words[0].startswith("/") else source
    mode = "ro"
    chosen: dict[str, tuple[str, ...]] = {"images": (), "users": (), "groups": ()}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if word in ("ro", "rw"):
            mode = word
        elif name in chosen and equals and value:
            chosen[name] = tuple(value.split())
        else:
            msg = f"`{word}` is not known; after the place in the container there may be {KNOWN_WORDS}"
            raise ValueError(msg)
    _check_path("path on the node", source)
    _check_path("place in the container", destination)
    place = posixpath.normpath(destination)
    taken = next((path for path in _TAKEN if _is_in(place, path) or _is_in(path, place)), None)
    if taken is not None:
        msg = f"the place in the container `{destination}` is taken: {taken} has what the worker or Apptainer puts there"
        raise ValueError(msg)
    return SiteBind(source, place, mode == "ro", chosen["images"], chosen["users"], chosen["groups"])


def parse_site_binds(table: Mapping[str, str]) -> tuple[SiteBind, ...]:
    """All lines of the table; raises ValueError naming the line that makes no sense."""
    binds = []
    for source, text in table.items():
        try:
            binds.append(parse_site_bind(source, text))
        except ValueError as error:
            msg = f"`{source}`: {error}"
            raise ValueError(msg) from error
    return tuple(binds)


def binds_for(
    binds: Sequence[SiteBind], image_names: Sequence[str], *, owner: JobOwner = NOBODY
) -> tuple[SiteBind, ...]:
    """Those that containers of this image get when this user runs them; of several for one place, the last."""
    found: dict[str, SiteBind] = {}
    for bind in binds:
        if bind.fits(image_names, owner):
            found[bind.destination] = bind
    return tuple(found.values())


def asked_groups(binds: Sequence[SiteBind]) -> tuple[bool, bool]:
    """Whether these have to know the groups of a job's user, and whether their names as well."""
    words = [word for bind in binds for word in bind.groups]
    return bool(words), any(not _ID.fullmatch(word) for word in words)


def outer_first(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """The mounts in an order in which none hides one below it."""
    return tuple(sorted(mounts, key=lambda mount: posixpath.normpath(mount.destination).count("/")))


def _check_path(role: str, path: str) -> None:
    if not path.startswith("/") or ".." in path.split("/"):
        msg = f"the {role} `{path}` is not an absolute path"
        raise ValueError(msg)
    if found := _STRANGE.search(path):
        msg = f"the {role} `{path}` holds {found[0]!r}, which stands for something else in lists of mounts"
        raise ValueError(msg)
    if posixpath.normpath(path) in ("/", "//") and role != "path on the node":
        msg = f"the {role} `{path}` is the whole container"
        raise ValueError(msg)


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")
