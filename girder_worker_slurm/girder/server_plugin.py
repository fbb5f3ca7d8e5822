"""What our optional plugin inside the Girder server tells: Girder's settings for Slurm, and whose a token is."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.errors import GirderUnreachable
from girder_worker_slurm.girder.connection import UNUSABLE, ask_girder, girder_session
from girder_worker_slurm.job.state import GirderUser

if TYPE_CHECKING:
    from collections.abc import Mapping

    import requests

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.job.state import GirderJob

logger = logging.getLogger(__name__)

PATH = "worker_slurm/options"
#: A changed setting counts after this long at the latest.
FRESH_SECONDS = 60.0
#: A Girder without the plugin gets it with a restart.
ABSENT_SECONDS = 300.0
_NO_SETTINGS: Mapping[str, object] = {}


@dataclass(frozen=True)
class _Told:
    """What one Girder said last, and when."""

    at: float
    is_there: bool
    settings: Mapping[str, object]

    def is_fresh(self, now: float) -> bool:
        return now - self.at < (FRESH_SECONDS if self.is_there else ABSENT_SECONDS)


class ServerPlugin:
    """Asks the plugin, and notices where there is none. One object serves all jobs and threads."""

    def __init__(self, clock: Clock, session: requests.Session | None = None) -> None:
        self._clock = clock
        self._session = session or girder_session()
        self._lock = threading.Lock()
        self._told: dict[str, _Told] = {}
        #: A Girder that kept somebody waiting is not asked for as long as that took.
        self._left_alone_until: dict[str, float] = {}

    def settings(self, job: GirderJob) -> Mapping[str, object]:
        """Girder's settings for Slurm, no older than a minute; empty if the plugin is not there.

        Costs a call once a minute at most, made with the job's own token. Raises GirderUnreachable.
        """
        api_url = job.api_url
        with self._lock:  # the others wait for the one answer
            known = self._told.get(api_url)
            now = self._clock.monotonic()
            if known is not None and known.is_fresh(now):
                return known.settings
            if now < self._left_alone_until.get(api_url, now):
                # Whoever waited for an answer that did not come must not wait for another one, thread after thread.
                msg = f"{api_url} did not answer a moment ago."
                raise GirderUnreachable(msg)
            try:
                answer = self._ask(api_url, job.token)
            except GirderUnreachable:
                failed = self._clock.monotonic()
                self._left_alone_until[api_url] = failed + (failed - now)
                raise
        if answer is not None:
            return _settings_in(answer)
        # A token that has expired says nothing about the settings; Girder takes nothing else for it either.
        known = self._told.get(api_url)
        return known.settings if known is not None else _NO_SETTINGS

    def owner(self, api_url: str, token: str) -> GirderUser | None:
        """The user for whom Girder made this token, whatever the token may do otherwise.

        None if the plugin is not there or does not tell. A call each time, unless it is known that there is no plugin;
        the answer has the settings as well, which need no call of their own then. Raises GirderUnreachable.
        """
        known = self._told.get(api_url)
        if known is not None and not known.is_there and known.is_fresh(self._clock.monotonic()):
            return None
        user = (self._ask(api_url, token) or {}).get("user")
        if not isinstance(user, dict) or not user.get("id"):
            return None
        groups = user.get("groups")
        return GirderUser(
            str(user["id"]),
            str(user.get("login") or ""),
            str(user.get("email") or ""),
            {str(key): str(name or "") for key, name in groups.items()} if isinstance(groups, dict) else {},
        )

    def _ask(self, api_url: str, token: str) -> dict[str, Any] | None:
        """The plugin's answer, remembered; None if it is not there, or for this token not to be asked."""
        url = f"{api_url}/{PATH}"
        try:
            response = ask_girder(self._session, "GET", url, token=token, about=url)
        except UNUSABLE:
            return None
        if response.status_code == 404:
            known = self._told.get(api_url)
            if known is not None and known.is_there and "Girder" not in response.text:
                # A proxy's page while Girder is away; without account or groups jobs would run wrongly, or not at all.
                msg = f"Something that is not Girder answered 404 for {url}."
                raise GirderUnreachable(msg)
            self._remember(api_url, _Told(self._clock.monotonic(), is_there=False, settings=_NO_SETTINGS))
            return None
        if response.status_code in (401, 403):
            return None
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not response.ok or not isinstance(answer, dict):
            msg = f"Girder answered {response.status_code} for {url}."
            raise GirderUnreachable(msg)
        told = _Told(self._clock.monotonic(), is_there=True, settings=_settings_in(answer))
        self._remember(api_url, told)
        return answer

    def _remember(self, api_url: str, told: _Told) -> None:
        before = self._told.get(api_url)
        self._told = {**self._told, api_url: told}
        if before is None or (before.is_there, before.settings) != (told.is_there, told.settings):
            said = {name: value for name, value in told.settings.items() if value not in ("", None)}
            logger.info(
                "%s %s",
                api_url,
                f"has the plugin worker_slurm, and these settings: {said}"
                if told.is_there
                else "has no plugin worker_slurm",
            )


def _settings_in(answer: Mapping[str, Any]) -> Mapping[str, object]:
    settings = answer.get("settings")
    return settings if isinstance(settings, dict) else _NO_SETTINGS
