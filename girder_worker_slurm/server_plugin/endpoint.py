"""`GET worker_slurm/options`: what the worker asks with a job's own tokens."""

from __future__ import annotations

from typing import Any

from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.exceptions import AccessException
from girder.models.group import Group
from girder.models.token import Token
from girder.models.user import User

from girder_worker_slurm.server_plugin.stored import told_settings

#: The scope of a token that may report about one job; it belongs to no user.
_JOB_SCOPE = "jobs.job_"
#: That of `girder_client_token`, which Girder makes for each task and for the user who sends it.
_TASK_SCOPE = "jobs.rest.create_job"


class WorkerSlurm(Resource):  # type: ignore[misc] # Girder has no types
    """The endpoints below `worker_slurm`."""

    def __init__(self) -> None:
        super().__init__()
        self.resourceName = "worker_slurm"
        self.route("GET", ("options",), self.options)

    @access.token  # type: ignore[untyped-decorator]
    @autoDescribeRoute(  # type: ignore[untyped-decorator]
        Description("What jobs ask of Slurm, and whose task this token is of.")
        .notes(
            "For the token of a job, the token of a task, which tells its own user as well, and administrators."
        )
        .errorResponse("The token is none of these.", 403)
    )
    def options(self) -> dict[str, Any]:
        """The settings that are set, and the user of a task's token. Raises AccessException."""
        token = self.getCurrentToken()
        scopes = Token().getAllowedScopes(token)
        is_of_task = _TASK_SCOPE in scopes and token.get("userId") is not None
        if not is_of_task and not any(scope.startswith(_JOB_SCOPE) for scope in scopes):
            user = self.getCurrentUser()
            if user is None or not user.get("admin"):
                raise AccessException("Only the tokens of jobs and administrators may ask for this.")
        return {"settings": told_settings(), "user": _owner(token) if is_of_task else None}


def _owner(token: dict[str, Any]) -> dict[str, Any] | None:
    user = User().load(token["userId"], force=True)
    if user is None:
        return None
    groups = Group().find({"_id": {"$in": user.get("groups") or []}}, fields=["name"])
    return {
        "id": str(user["_id"]),
        "login": user["login"],
        "email": user["email"],
        "groups": {str(group["_id"]): group["name"] for group in groups},
    }
