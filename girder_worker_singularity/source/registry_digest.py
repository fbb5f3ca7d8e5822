"""The digest that a registry has for an image now, asked with one or two small requests.

Only a hint that can save a conversion: whatever goes wrong here, the answer is "not known", and Apptainer's own
pull tells what is the matter.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.image.reference import DEFAULT_REGISTRY, ImageReference

if TYPE_CHECKING:
    from collections.abc import Mapping

    import requests

_ACCEPTED = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_TIMEOUT_SECONDS = (3.05, 10.0)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


def registry_digest(
    reference: ImageReference,
    *,
    plain_http_registries: tuple[str, ...] = (),
    authfile: Path | None = None,
    environment: Mapping[str, str] | None = None,
    session: requests.Session | None = None,
) -> str | None:
    """`sha256:...` of what the registry serves for this image now; None if that is not known.

    Credentials are those that Apptainer takes: APPTAINER_DOCKER_USERNAME and _PASSWORD of `environment`, a
    Docker-style `authfile`, or what `apptainer registry login` and `docker login` left.
    """
    if reference.digest:
        return reference.digest
    import requests  # noqa: PLC0415 - slow to load; the command line and the settings do without

    registry = reference.canonical_registry
    scheme = "http" if registry in plain_http_registries else "https"
    host = "registry-1.docker.io" if registry == DEFAULT_REGISTRY else registry
    repository = reference.canonical_repository.partition("/")[2]
    url = f"{scheme}://{host}/v2/{repository}/manifests/{reference.tag or 'latest'}"
    credentials = _credentials(registry, authfile, environment or {})
    try:
        with session or requests.Session() as connection:
            return _digest(_head(connection, url, credentials))
    except (requests.RequestException, ValueError):
        return None


def _head(session: requests.Session, url: str, credentials: tuple[str, str] | None) -> requests.Response:
    headers = {"Accept": _ACCEPTED}
    answer = session.head(url, headers=headers, timeout=_TIMEOUT_SECONDS, allow_redirects=True)
    if answer.status_code != 401:
        return answer
    challenge = answer.headers.get("WWW-Authenticate", "")
    if challenge.lower().startswith("bearer"):
        token = _bearer_token(session, challenge, credentials)
        headers["Authorization"] = f"Bearer {token}"
    elif credentials is not None:
        text = base64.b64encode(":".join(credentials).encode()).decode()
        headers["Authorization"] = f"Basic {text}"
    else:
        return answer
    return session.head(url, headers=headers, timeout=_TIMEOUT_SECONDS, allow_redirects=True)


def _bearer_token(session: requests.Session, challenge: str, credentials: tuple[str, str] | None) -> str:
    fields = dict(_CHALLENGE.findall(challenge))
    realm = fields.pop("realm", "")
    if not realm.startswith(("https://", "http://")):
        raise ValueError(realm)
    answer = session.get(
        realm,
        params={key: fields[key] for key in ("service", "scope") if key in fields},
        auth=credentials,
        timeout=_TIMEOUT_SECONDS,
    )
    answer.raise_for_status()
    body = answer.json()
    return str(body.get("token") or body.get("access_token") or "")


def _digest(answer: requests.Response) -> str | None:
    digest = answer.headers.get("Docker-Content-Digest", "")
    return digest if answer.status_code == 200 and _DIGEST.fullmatch(digest) else None


def _credentials(
    registry: str, authfile: Path | None, environment: Mapping[str, str]
) -> tuple[str, str] | None:
    for prefix in ("APPTAINER", "SINGULARITY"):
        name = environment.get(f"{prefix}_DOCKER_USERNAME")
        word = environment.get(f"{prefix}_DOCKER_PASSWORD")
        if name and word:
            return name, word
    home = Path(environment.get("HOME", "/nonexistent"))
    own = Path(environment.get("APPTAINER_CONFIGDIR", home / ".apptainer"))
    files = (
        [authfile] if authfile is not None else [own / "docker-config.json", home / ".docker" / "config.json"]
    )
    for file in files:
        found = _from_authfile(registry, file)
        if found is not None:
            return found
    return None


def _from_authfile(registry: str, authfile: Path) -> tuple[str, str] | None:
    keys = [registry, f"https://{registry}"]
    if registry == DEFAULT_REGISTRY:
        keys += ["https://index.docker.io/v1/", "index.docker.io"]
    try:
        entries: Any = json.loads(authfile.read_text(encoding="utf-8")).get("auths", {})
        for key in keys:
            encoded = entries.get(key, {}).get("auth")
            if encoded:
                name, colon, word = base64.b64decode(encoded).decode().partition(":")
                return (name, word) if colon else None
    except (OSError, ValueError, AttributeError):
        return None
    return None
