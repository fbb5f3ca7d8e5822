"""The digest that a registry has for an image now, asked with one or two small requests.

Only a hint that can save a conversion: whatever goes wrong here, the answer is "not known", and Apptainer's own
pull tells what is the matter.
"""

from __future__ import annotations

import json
import queue
import re
import threading
from typing import TYPE_CHECKING

from girder_worker_singularity.image.reference import DEFAULT_REGISTRY, ImageReference

if TYPE_CHECKING:
    import requests

    from girder_worker_singularity.source.credentials import Credentials
    from girder_worker_singularity.source.proxies import Proxies

_ACCEPTED = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_TIMEOUT_SECONDS = (3.05, 10.0)
_DEADLINE_SECONDS = 30.0
_LARGEST_TOKEN_BYTES = 1024 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


def registry_digest(
    reference: ImageReference,
    *,
    plain_http_registries: tuple[str, ...] = (),
    credentials: Credentials | None = None,
    proxies: Proxies | None = None,
    session: requests.Session | None = None,
) -> str | None:
    """`sha256:...` of what the registry serves for this image now; None if that is not known.

    The credentials are sent only where the registry asks for some.
    """
    if reference.digest:
        return reference.digest
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            found.put(_look(reference, plain_http_registries, credentials, proxies, session))
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


def _look(
    reference: ImageReference,
    plain_http_registries: tuple[str, ...],
    credentials: Credentials | None,
    proxies: Proxies | None,
    session: requests.Session | None,
) -> str | None:
    import requests  # noqa: PLC0415 - slow to load; the command line and the settings do without

    registry = reference.canonical_registry
    scheme = "http" if registry in {one.lower() for one in plain_http_registries} else "https"
    host = "registry-1.docker.io" if registry == DEFAULT_REGISTRY else registry
    repository = reference.canonical_repository.removeprefix("oras://").partition("/")[2]
    url = f"{scheme}://{host}/v2/{repository}/manifests/{reference.tag or 'latest'}"
    try:
        with session or requests.Session() as connection:
            # Or else requests would send what a .netrc says to any registry that a task names.
            connection.auth = lambda request: request
            if proxies is not None and proxies.environment:
                connection.trust_env = False
                if not requests.utils.should_bypass_proxies(url, proxies.without):
                    connection.proxies = {"http": proxies.http, "https": proxies.https}
            return _digest(_head(connection, url, credentials))
    except (requests.RequestException, ValueError):
        return None


def _head(session: requests.Session, url: str, credentials: Credentials | None) -> requests.Response:
    headers = {"Accept": _ACCEPTED}
    answer = session.head(url, headers=headers, timeout=_TIMEOUT_SECONDS, allow_redirects=True)
    if answer.status_code != 401:
        return answer
    challenge = answer.headers.get("WWW-Authenticate", "")
    if challenge.lower().startswith("bearer"):
        token = _bearer_token(session, url, challenge, credentials)
        headers["Authorization"] = f"Bearer {token}"
    elif credentials is not None:
        headers["Authorization"] = f"Basic {credentials.basic}"
    else:
        return answer
    return session.head(url, headers=headers, timeout=_TIMEOUT_SECONDS, allow_redirects=True)


def _bearer_token(
    session: requests.Session, url: str, challenge: str, credentials: Credentials | None
) -> str:
    fields = dict(_CHALLENGE.findall(challenge))
    realm = fields.pop("realm", "")
    # A registry with TLS may not send the password over a line without.
    allowed = ("https://", "http://") if url.startswith("http://") else ("https://",)
    if not realm.startswith(allowed):
        raise ValueError(realm)
    answer = session.get(
        realm,
        params={key: fields[key] for key in ("service", "scope") if key in fields},
        headers={"Authorization": f"Basic {credentials.basic}"} if credentials is not None else None,
        timeout=_TIMEOUT_SECONDS,
        stream=True,
    )
    answer.raise_for_status()
    content = b""
    for piece in answer.iter_content(16 * 1024):
        content += piece
        if len(content) > _LARGEST_TOKEN_BYTES:
            raise ValueError(realm)
    body = json.loads(content)
    return str(body.get("token") or body.get("access_token") or "")


def _digest(answer: requests.Response) -> str | None:
    digest = answer.headers.get("Docker-Content-Digest", "")
    return digest if answer.status_code == 200 and _DIGEST.fullmatch(digest) else None
