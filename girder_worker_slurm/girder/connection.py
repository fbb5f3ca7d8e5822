"""One question to Girder with a token: what it answered, or what there is to say when it did not."""

from __future__ import annotations

from typing import Any

import requests

from girder_worker_slurm.errors import GirderUnreachable

TIMEOUT = (10.0, 60.0)  # connect, read
#: An address or a token that no request can be made with, whenever it is tried.
UNUSABLE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    UnicodeError,
)


def girder_session() -> requests.Session:
    """Connections that all jobs and threads share; nothing is tried twice behind our back."""
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=16, max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def ask_girder(
    session: requests.Session,
    method: str,
    url: str,
    *,
    token: str,
    about: str,
    data: dict[str, Any] | None = None,
) -> requests.Response:
    """Whatever is answered, a refusal as well; `about` is what errors say was asked for.

    Raises GirderUnreachable when there is no answer, one of UNUSABLE when there can be none.
    """
    try:
        return session.request(method, url, data=data, headers={"Girder-Token": token}, timeout=TIMEOUT)
    except requests.exceptions.InvalidProxyURL as error:
        # Counts as an InvalidURL, but it is this machine's, and can be put right.
        msg = f"Girder cannot be asked for {about}: the proxy's address is wrong."
        raise GirderUnreachable(msg) from error
    except UNUSABLE:
        raise
    except requests.RequestException as error:
        msg = f"Girder did not answer for {about}: {type(error).__name__}."
        raise GirderUnreachable(msg) from error
