"""Takes passwords out of texts before anyone sees them. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

    from girder_worker_slurm.settings import Settings

#: user:password@ of any address, also of one that is in no setting.
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]*@")
_SHORTEST = 4


def hiding(settings: Settings | None) -> Callable[[str], str]:
    """A function that replaces every password of these settings, and the user part of every address, by ``***``."""
    words: set[str] = set()
    for url in (settings.celery.broker, settings.celery.backend) if settings else ():
        try:
            password = urlsplit(url.get_secret_value()).password
        except ValueError:
            continue
        if password and len(password) >= _SHORTEST and password != "guest":  # noqa: S105 - RabbitMQ's known default
            words |= {password, unquote(password)}
    ordered = sorted(words, key=len, reverse=True)

    def hide(text: str) -> str:
        for word in ordered:
            text = text.replace(word, "***")
        return _IN_ADDRESS.sub("***@", text)

    return hide
