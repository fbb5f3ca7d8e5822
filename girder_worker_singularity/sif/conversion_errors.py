"""What Apptainer's output says went wrong: its failures become errors here and nowhere else. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from girder_worker_singularity.errors import (
    ContainerError,
    ConversionFailed,
    ImageNotFound,
    NotEnoughSpace,
    RegistryRefused,
    RegistryUnreachable,
)

if TYPE_CHECKING:
    from girder_worker_singularity.image.reference import ImageReference

_LAST_LINES = 12


def conversion_error(reference: ImageReference, output: str, *, registry: str = "") -> ContainerError:
    """What Apptainer's output says went wrong with this registry or library, or the one the reference names. Pure."""
    kind_of_server = "library" if reference.scheme == "library" else "registry"
    server = f"{kind_of_server} {registry or reference.canonical_registry}".rstrip()
    # What the image is called must not be taken for what went wrong.
    said = output.replace(reference.canonical_repository, "").replace(reference.repository, "")
    if _NO_LIBRARY.search(said):
        return ConversionFailed(
            f"This site has no library from which {reference} could be fetched. {shown(output)}",
            remedy="Set `library` in [singularity], or add one as the worker's user (`apptainer remote add`).",
        )
    for pattern, kind, what in _FAILURES:
        if pattern.search(said):
            return kind(f"{what.format(image=reference, server=server)} {shown(output)}")
    return ConversionFailed(f"Apptainer could not convert {reference}. {shown(output)}")


_NO_LIBRARY = re.compile(r"no default remote with library client", re.IGNORECASE)
# In this order: the first that matches decides. The texts are in tests/recorded/apptainer-*.
_FAILURES: tuple[tuple[re.Pattern[str], type[ContainerError], str], ...] = (
    (
        re.compile(
            r"no space left on device|disk quota exceeded|Write failed because No space", re.IGNORECASE
        ),
        NotEnoughSpace,
        "There is not enough space to convert {image}.",
    ),
    (
        re.compile(
            r"UNAUTHORIZED|DENIED|unauthorized|authentication required|\b40[13] (?:Forbidden|Unauthorized)"
        ),
        RegistryRefused,
        "The {server} does not give {image} to this worker.",
    ),
    (
        re.compile(
            r"MANIFEST_UNKNOWN|NAME_UNKNOWN|manifest unknown|name unknown|\b404 Not Found|No such image|"
            r"does not exist in the library",
            re.IGNORECASE,
        ),
        ImageNotFound,
        "The {server} does not have the image {image}.",
    ),
    (
        re.compile(
            r"connection refused|connection reset|no such host|i/o timeout|deadline exceeded|TLS handshake|"
            r"network is unreachable|no route to host|x509:|server gave HTTP response to HTTPS client|unexpected EOF|"
            r"TOOMANYREQUESTS|\b(?:429|50[0234]) [A-Z]|proxyconnect|temporary failure in name resolution",
            re.IGNORECASE,
        ),
        RegistryUnreachable,
        "The {server} could not be reached for {image}.",
    ),
)


def shown(output: str) -> str:
    """Apptainer's last lines, in quotes, of a text without secrets."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    wanted = [line for line in lines if line.startswith(("FATAL", "ERROR", "WARNING"))] or lines
    if not wanted:
        return "Apptainer said nothing."
    text = "\n".join(wanted[-_LAST_LINES:])
    return f'Apptainer said: "{text}".'
