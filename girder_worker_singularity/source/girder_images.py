"""Which images a Girder has, as its administrator sees them.

Girder tells nobody that an image was removed from it, so it is asked. A list that is not whole would have SIFs removed
that are wanted: only an answer for an administrator, who may see all folders, counts.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.errors import CredentialsInvalid, GirderListUnknown, ImageReferenceInvalid
from girder_worker_singularity.image.reference import parse_image_reference

if TYPE_CHECKING:
    from pathlib import Path

    import requests

_TIMEOUT_SECONDS = (10.0, 120.0)
_LARGEST_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class GirderAccount:
    """With what a Girder is asked: an API key, or a token."""

    api_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def account_in(path: Path) -> GirderAccount:
    """The API key in a file that only its owner can read; raises CredentialsInvalid."""
    remedy = "It must hold an API key of an administrator of Girder, be yours and have mode 0600."
    try:
        if path.stat().st_mode & 0o077:
            raise CredentialsInvalid(f"The file {path} with an API key can be read by others.", remedy=remedy)
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CredentialsInvalid(
            f"The file {path} cannot be read: {error.strerror}.", remedy=remedy
        ) from error
    except ValueError:
        key = ""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise CredentialsInvalid(f"The file {path} does not hold an API key.", remedy=remedy)
    return GirderAccount(api_key=key)


def girder_images(
    url: str, account: GirderAccount, *, session: requests.Session | None = None
) -> frozenset[str]:
    """The images, as canonical references, of which this Girder has CLIs or had them described; may be none.

    `url` is that of Girder or of its API. Raises GirderListUnknown unless it is sure that these are all.
    """
    import requests  # noqa: PLC0415 - slow to load

    api = url.rstrip("/") if "/api/" in f"{url}/" else f"{url.rstrip('/')}/api/v1"
    try:
        with session or requests.Session() as connection:
            # Or else requests would send what a .netrc says.
            connection.auth = lambda request: request
            connection.headers["Girder-Token"] = account.token or _token(connection, api, account.api_key)
            me = _ask(connection, "GET", f"{api}/user/me")
            if not isinstance(me, dict) or me.get("admin") is not True:
                raise GirderListUnknown(f"The account at {api} is not an administrator's.")
            return _references(_ask(connection, "GET", f"{api}/slicer_cli_web/docker_image"))
    except requests.RequestException as error:
        raise GirderListUnknown(f"Girder at {api} does not answer: {type(error).__name__}.") from error


def _token(session: requests.Session, api: str, api_key: str) -> str:
    try:
        # In the body: an address stands in the logs of servers and proxies.
        return str(_ask(session, "POST", f"{api}/api_key/token", data={"key": api_key})["authToken"]["token"])
    except (KeyError, TypeError):
        raise GirderListUnknown(f"Girder at {api} gives no token for the API key.") from None


def _ask(session: requests.Session, method: str, url: str, **options: Any) -> Any:
    # No redirects: the token is for this server alone.
    answer = session.request(
        method, url, timeout=_TIMEOUT_SECONDS, allow_redirects=False, stream=True, **options
    )
    content = b""
    for piece in answer.iter_content(64 * 1024):
        content += piece
        if len(content) > _LARGEST_ANSWER_BYTES:
            raise GirderListUnknown(f"{url} answers with more than can be read.")
    if answer.status_code != 200:
        raise GirderListUnknown(f"{url} answers with status {answer.status_code}.")
    try:
        return json.loads(content)
    except ValueError:
        raise GirderListUnknown(f"{url} does not answer as Girder does.") from None


def _references(listed: Any) -> frozenset[str]:
    """The images in `{name: {tag: CLIs}}`; the tag may be a digest."""
    if not isinstance(listed, dict) or not all(isinstance(tags, dict) for tags in listed.values()):
        raise GirderListUnknown("What Girder lists are not images.")
    found = set()
    for name, tags in listed.items():
        for tag in tags:
            # What has no name as an image has no SIF.
            with contextlib.suppress(ImageReferenceInvalid):
                text = f"{name}{'@' if tag.startswith('sha256:') else ':'}{tag}"
                found.add(parse_image_reference(text).canonical)
    return frozenset(found)
