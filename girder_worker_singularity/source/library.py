"""A site's own library of SIFs, and how Apptainer is made to speak to it. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from girder_worker_singularity.source.origin import Origin


def library_server(origin: Origin, library: str, plain_http_registries: tuple[str, ...]) -> str:
    """The URL of the library that this image is fetched from; empty if only the user's `apptainer remote` says it.

    `library` is the site's own, for references that name no host.
    """
    if origin.source != "library":
        return ""
    if not origin.registry:
        return library
    scheme = "http" if is_plain(origin.registry, plain_http_registries) else "https"
    return f"{scheme}://{origin.registry}"


def is_plain(registry: str, plain_http_registries: tuple[str, ...]) -> bool:
    """Whether this `host:port` is spoken to without TLS."""
    return registry.lower() in {one.lower() for one in plain_http_registries}


def remote_file_text(server: str) -> str:
    """A `remote.yaml` without which Apptainer speaks to no library, not even to one that `--library` names.

    The server is named as the one that is asked for keys after a pull, too. Otherwise Apptainer would first look
    for a description of services that few libraries have (seen: 1.4.5).
    """
    site = {
        "URI": "site",
        "System": False,
        "Exclusive": False,
        "Keyservers": [{"URI": server, "External": True, "Skip": False}],
    }
    return json.dumps({"Active": "site", "Remotes": {"site": site}}) + "\n"  # JSON is YAML
