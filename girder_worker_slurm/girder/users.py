"""Who runs a job: what Girder answers for the token of its task, never what the task itself says."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from girder_worker_slurm.errors import GirderUnreachable
from girder_worker_slurm.girder.connection import UNUSABLE, ask_girder, girder_session
from girder_worker_slurm.girder.job_updates import moment_of
from girder_worker_slurm.job.state import GirderUser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import requests

    from girder_worker_singularity.clock import Clock
    from girder_worker_slurm.girder.server_plugin import ServerPlugin
    from girder_worker_slurm.job.state import GirderJob

logger = logging.getLogger(__name__)

#: How long what Girder says about a user counts: their jobs come in hundreds.
_REMEMBERED_SECONDS = 300.0
#: Girder's ways to say that it has no such thing, or not for this token.
_REFUSALS = frozenset({400, 401, 403, 404})


class GirderUsers:
    """Asks Girder whose jobs these are. One object serves all jobs and threads."""

    def __init__(
        self,
        clock: Clock,
        *,
        with_profile: bool = False,
        with_group_names: bool = False,
        plugin: ServerPlugin | None = None,
        session: requests.Session | None = None,
    ) -> None:
        self._clock = clock
        self._with_profile = with_profile
        self._with_group_names = with_group_names
        self._plugin = plugin
        self._session = session or girder_session()
        self._known: dict[tuple[str, str], tuple[float, GirderUser]] = {}

    def user_of(
        self, job: GirderJob, message: Mapping[str, Any], tokens: Sequence[str] = ()
    ) -> GirderUser | None:
        """Who sent the task of this message; None if Girder does not say: the task has no token, or nobody's.

        A token of somebody else than the one for whom the outputs are counts as nobody's: in Girder 5.0.21 the tasks
        of a batch have tokens of the user who was the first to run one since Girder was started.

        `tokens` are those of its inputs and outputs, which may tell more about the user (`with_profile`).

        Costs one call a job, and some more for each user now and then; where Girder has our plugin, this one call tells
        all. Raises GirderUnreachable when Girder is away, which says nothing about the user.
        """
        token = message["headers"].get("girder_client_token")
        if not isinstance(token, str) or not token:
            return None
        api_url = job.api_url
        told = self._plugin.owner(api_url, token) if self._plugin is not None else None
        user_id = told.id if told is not None else self._id_of(api_url, token)
        if not user_id:
            return None
        if any(other != user_id for other in _beneficiaries(message)):
            logger.warning(
                "Task %s has tokens of user %s but is for another: it counts as nobody's",
                message["task_id"],
                user_id,
            )
            return None
        if told is not None:
            # What nobody asks for is not kept.
            return told if self._with_profile else GirderUser(told.id, told.login)
        known = self._known.get((api_url, user_id))
        now = self._clock.monotonic()
        if known is not None and now - known[0] < _REMEMBERED_SECONDS:
            return known[1]
        # A user whose account is private is seen by those alone who may read it.
        user = self._with_all_that_is_told(api_url, user_id, tokens) if self._with_profile else None
        if user is None:
            login = self._ask(f"{api_url}/user/{quote(user_id, safe='')}", token).get("login")
            user = GirderUser(user_id, str(login or ""))
            if self._with_profile:
                return user  # the next task may have a token that tells more
        self._known = {
            key: entry for key, entry in self._known.items() if now - entry[0] < _REMEMBERED_SECONDS
        } | {(api_url, user_id): (now, user)}
        return user

    def _id_of(self, api_url: str, token: str) -> str:
        return str(self._ask(f"{api_url}/token/current", token).get("userId") or "")

    def token_ends_at(self, job: GirderJob) -> float:
        """When the job's own token expires, in seconds since the epoch; 0 if it has, or if Girder does not say.

        Costs a call. Raises GirderUnreachable.
        """
        return moment_of(self._ask(f"{job.api_url}/token/current", job.token).get("expires"))

    def _with_all_that_is_told(self, api_url: str, user_id: str, tokens: Sequence[str]) -> GirderUser | None:
        """The user with e-mail address and groups; None if Girder tells them to none of these tokens."""
        for token in tokens:
            me = self._ask(f"{api_url}/user/me", token)
            if str(me.get("_id")) != user_id or not me.get("email"):
                continue
            groups = {str(group): "" for group in me.get("groups") or ()}
            if self._with_group_names:
                for group in groups:
                    found = self._ask(f"{api_url}/group/{quote(group, safe='')}", token)
                    groups[group] = str(found.get("name") or "")
            return GirderUser(user_id, str(me.get("login") or ""), str(me["email"]), groups)
        return None

    def _ask(self, url: str, token: str) -> dict[str, Any]:
        """Girder's answer; empty if it refuses one."""
        try:
            response = ask_girder(self._session, "GET", url, token=token, about=url)
        except UNUSABLE:
            return {}
        try:
            answer = response.json()
        except ValueError as error:
            # The page of a proxy while Girder is away, say.
            msg = f"Something that is not Girder answered {response.status_code} for {url}."
            raise GirderUnreachable(msg) from error
        if response.status_code in _REFUSALS:
            return {}
        if not response.ok:
            msg = f"Girder answered {response.status_code} for {url}."
            raise GirderUnreachable(msg)
        return answer if isinstance(answer, dict) else {}


def expected_user(message: Mapping[str, Any]) -> str:
    """The id of the user for whom a task says it is, empty if it does not say.

    Good enough to stand in that user's line until Girder is asked, and for nothing else.
    """
    return next(_beneficiaries(message), "")


def _beneficiaries(message: Mapping[str, Any]) -> Iterator[str]:
    """For whom the task says its outputs are: not to be believed, but reason to doubt when it is another."""
    pending = [message["headers"].get("girder_result_hooks")]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
            try:
                reference = json.loads(value.get("reference") or "null")
            except (TypeError, ValueError, RecursionError):
                continue
            if isinstance(reference, dict) and reference.get("userId"):
                yield str(reference["userId"])
