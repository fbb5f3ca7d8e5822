"""What a site says about how containers of some images are run: a table of patterns and words. Pure."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from girder_worker_singularity.errors import ImageReferenceInvalid
from girder_worker_singularity.image.reference import parse_image_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

KNOWN_WORDS = (
    "writable=none, writable=tmpfs, writable=overlay, writable=overlay:MIB, fakeroot, fakeroot=no, net=none, net=host, "
    "gpu=nv, gpu=rocm, gpu=none"
)
_MOST_MIB = 10_000_000
#: Apptainer makes no smaller one ("image size must be equal or greater than 64 MiB", 1.4.5).
SMALLEST_OVERLAY_MIB = 64


@dataclass(frozen=True)
class ImageRule:
    """How containers of an image are run; None leaves it to the rules above, and at last to the default."""

    writable: Literal["none", "tmpfs", "overlay"] | None = None
    overlay_mib: int | None = None
    """Size of the overlay; None: the site's usual one."""
    fakeroot: bool | None = None
    network_none: bool | None = None
    gpu: Literal["nv", "rocm", "none"] | None = None


def parse_image_rule(text: str) -> ImageRule:
    """The rule that these words say, separated by commas; raises ValueError naming the word that is not known."""
    rule = ImageRule()
    for word in (word.strip() for word in text.replace("\n", ",").split(",")):
        if word:
            rule = _with(rule, word)
    if rule == ImageRule():
        msg = f"says nothing; known words are {KNOWN_WORDS}"
        raise ValueError(msg)
    return rule


def rule_for(rules: Mapping[str, ImageRule], image: str) -> ImageRule:
    """What all patterns that fit this image say together; where they differ the later one counts.

    A pattern fits if it fits the image as the task names it, the same without tag and digest, or the name in full
    (`docker.io/library/tool`): `*` stands for anything, `/` included.
    """
    names = image_spellings(image)
    found = ImageRule()
    for pattern, rule in rules.items():
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            said = {f.name: getattr(rule, f.name) for f in fields(rule) if getattr(rule, f.name) is not None}
            found = replace(found, **said)
    return found


def image_spellings(image: str) -> tuple[str, ...]:
    """The names by which patterns may mean this image: as written, without tag, and both in full."""
    try:
        reference = parse_image_reference(image)
    except ImageReferenceInvalid:
        return (image,)
    bare = replace(reference, tag=None, digest=None)
    return (image, str(bare), reference.canonical, reference.canonical_repository)


def _with(rule: ImageRule, word: str) -> ImageRule:
    name, _, value = (part.strip() for part in word.partition("="))
    match name, value:
        case "writable", "none" | "tmpfs" | "overlay":
            return replace(rule, writable=value)
        case "writable", _ if size := re.fullmatch(r"overlay:([1-9][0-9]*)", value):
            if int(size[1]) < SMALLEST_OVERLAY_MIB:
                msg = f"`{word}` is too small; an overlay has {SMALLEST_OVERLAY_MIB} MiB at least"
                raise ValueError(msg)
            if int(size[1]) <= _MOST_MIB:
                return replace(rule, writable="overlay", overlay_mib=int(size[1]))
        case "fakeroot", "" | "yes" | "no":
            return replace(rule, fakeroot=value != "no")
        case "net", "none" | "host":
            return replace(rule, network_none=value == "none")
        case "gpu", "nv" | "rocm" | "none":
            return replace(rule, gpu=value)
    msg = f"`{word}` is not known; known words are {KNOWN_WORDS}"
    raise ValueError(msg)
