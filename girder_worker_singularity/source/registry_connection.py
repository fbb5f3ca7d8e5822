"""Small questions to a registry's API: with or without TLS, through a site's proxies, with an account where it asks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from girder_worker_singularity.image.reference import DEFAULT_REGISTRY, ImageReference
from girder_worker_singularity.source.library import is_plain
from girder_worker_singularity.source.proxies import Proxies

if TYPE_CHECKING:
    import requests

    from girder_worker_singularity.source.credentials import Credentials

_ACCEPTED = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_TIMEOUT_SECONDS = (3.05, 10.0)
_LARGEST_TOKEN_BYTES = 1024 * 1024
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class RegistryAccess:
    """How a registry is asked."""

    plain_http_registries: tuple[str, ...] = ()
    credentials: Credentials | None = None
    """Sent only where the registry asks for some."""
    proxies: Proxies = field(default_factory=Proxies)
    session: requests.Session | None = None
    """Instead of a new one."""


class RegistryConnection:
    """Asks the registry of one image. Use as a context manager; all calls raise RequestException or ValueError."""

    def __init__(self, reference: ImageReference, access: RegistryAccess) -> None:
        import requests  # noqa: PLC0415 - slow to load; the command line and the settings do without

        registry = reference.canonical_registry
        scheme = "http" if is_plain(registry, access.plain_http_registries) else "https"
        host = "registry-1.docker.io" if registry == DEFAULT_REGISTRY else registry
        repository = reference.canonical_repository.removeprefix("oras://").partition("/")[2]
        self._base = f"{scheme}://{host}/v2/{repository}/manifests"
        self._credentials = access.credentials
        self._headers = {"Accept": _ACCEPTED}
        self._session = access.session or requests.Session()
        # Or else requests would send what a .netrc says to any registry that a task names.
        self._session.auth = lambda request: request
        proxies = access.proxies
        if proxies.environment:
            self._session.trust_env = False
            if not requests.utils.should_bypass_proxies(self._base, proxies.without):
                self._session.proxies = {"http": proxies.http, "https": proxies.https}

    def __enter__(self) -> RegistryConnection:  # noqa: PYI034 - no subclass of it is wanted
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def manifest(self, name: str, *, method: str) -> requests.Response:
        """The answer to HEAD or GET of a manifest; its content has not been read yet.

        The account is sent only where the registry asks for one.
        """
        answer = self._ask(name, method)
        if answer.status_code != 401:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        if challenge.lower().startswith("bearer"):
            self._headers["Authorization"] = f"Bearer {self._bearer_token(challenge)}"
        elif self._credentials is not None:
            self._headers["Authorization"] = f"Basic {self._credentials.basic}"
        else:
            return answer
        return self._ask(name, method)

    def _ask(self, name: str, method: str) -> requests.Response:
        return self._session.request(
            method,
            f"{self._base}/{name}",
            headers=self._headers,
            timeout=_TIMEOUT_SECONDS,
            allow_redirects=True,
            stream=True,
        )

    def _bearer_token(self, challenge: str) -> str:
        fields = dict(_CHALLENGE.findall(challenge))
        realm = fields.pop("realm", "")
        # A registry with TLS may not send the password over a line without.
        allowed = ("https://", "http://") if self._base.startswith("http://") else ("https://",)
        if not realm.startswith(allowed):
            raise ValueError(realm)
        basic = f"Basic {self._credentials.basic}" if self._credentials is not None else None
        answer = self._session.get(
            realm,
            params={key: fields[key] for key in ("service", "scope") if key in fields},
            headers={"Authorization": basic} if basic is not None else None,
            timeout=_TIMEOUT_SECONDS,
            stream=True,
        )
        answer.raise_for_status()
        body = json.loads(content_of(answer, _LARGEST_TOKEN_BYTES))
        return str(body.get("token") or body.get("access_token") or "")


def content_of(answer: requests.Response, most_bytes: int) -> bytes:
    """The content of an answer; ValueError if it is longer than that."""
    content = b""
    for piece in answer.iter_content(16 * 1024):
        content += piece
        if len(content) > most_bytes:
            raise ValueError(answer.url)
    return content
