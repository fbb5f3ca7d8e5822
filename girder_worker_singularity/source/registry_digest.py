"""The digest that a registry has for an image now, asked with one or two small requests.

Only a hint that can save a conversion: whatever goes wrong here, the answer is "not known", and Apptainer's own
pull tells what is the matter.
"""

from __future__ import annotations

import queue
import re
import threading
from typing import TYPE_CHECKING

from girder_worker_singularity.source.registry_connection import RegistryConnection

if TYPE_CHECKING:
    import requests

    from girder_worker_singularity.image.reference import ImageReference
    from girder_worker_singularity.source.registry_connection import RegistryAccess

_DEADLINE_SECONDS = 30.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def registry_digest(reference: ImageReference, access: RegistryAccess) -> str | None:
    """`sha256:...` of what the registry serves for this image now; None if that is not known."""
    if reference.digest:
        return reference.digest
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            found.put(_look(reference, access))
        except BaseException:
            found.put(None)
            raise

    # In a thread of its own: the time limits of a request count between two bytes only, and who sends one byte now and
    # then would keep all conversions from their work.
    threading.Thread(target=look, name="gw-registry", daemon=True).start()
    try:
        return found.get(timeout=_DEADLINE_SECONDS)
    except queue.Empty:
        return None


def _look(reference: ImageReference, access: RegistryAccess) -> str | None:
    import requests  # noqa: PLC0415 - slow to load; the command line and the settings do without

    try:
        with RegistryConnection(reference, access) as registry:
            return _digest(registry.manifest(reference.tag or "latest", method="HEAD"))
    except (requests.RequestException, ValueError):
        return None


def _digest(answer: requests.Response) -> str | None:
    digest = answer.headers.get("Docker-Content-Digest", "")
    return digest if answer.status_code == 200 and _DIGEST.fullmatch(digest) else None
