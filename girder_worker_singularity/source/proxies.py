"""Through which proxies registries are reached. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Proxies:
    """How the network is reached; with nothing set, as the environment says."""

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    without: str = ""
    """Hosts and domains that are reached without, joined by commas."""

    def completed(self, environment: Mapping[str, str]) -> Proxies:
        """These, and from the environment what is not set here."""

        def value(own: str, name: str) -> str:
            return own or environment.get(name) or environment.get(name.upper()) or ""

        return Proxies(
            value(self.http, "http_proxy"), value(self.https, "https_proxy"), value(self.without, "no_proxy")
        )

    @property
    def environment(self) -> dict[str, str]:
        """What programs read."""
        values = {"http_proxy": self.http, "https_proxy": self.https, "no_proxy": self.without}
        both = {**values, **{name.upper(): value for name, value in values.items()}}
        return {name: value for name, value in both.items() if value}

    @property
    def secret_words(self) -> tuple[str, ...]:
        """The passwords in their addresses, as they are written there and as they are meant."""
        words = []
        for address in (self.http, self.https):
            user_part = address.rpartition("@")[0].rpartition("/")[2]
            password = user_part.partition(":")[2]
            words += [password, unquote(password)] if password else []
        return tuple(words)
