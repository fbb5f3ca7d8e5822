"""The run files of all Unix users that jobs run as, each made when it is first asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_singularity.command_runner import Conversation
from girder_worker_slurm.cluster.run_as import RunAs, uid_of
from girder_worker_slurm.cluster.user_run_files import UserRunFiles, UserUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from girder_worker_singularity.clock import Clock

#: What stands for the user's name in the name of their run root.
USER = "{user}"


class RunsOfUsers:
    """Call it with a user's name. Safe to use from many threads."""

    def __init__(
        self,
        run_root: str,
        *,
        program: str,
        transfers: Path,
        run_as: RunAs,
        environment: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self._run_root = run_root
        self._program = program
        self._transfers = transfers
        self._run_as = run_as
        self._environment = {name: environment[name] for name in ("PATH",) if name in environment}
        self._clock = clock
        self._lock = threading.Lock()
        self._made: dict[str, UserRunFiles] = {}

    def __call__(self, user: str) -> UserRunFiles:
        """The run files of this user; raises UserUnreachable if there is no such user here."""
        with self._lock:
            if user not in self._made:
                self._made[user] = self._make(user)
            return self._made[user]

    def users(self) -> tuple[str, ...]:
        """Whose run files were asked for."""
        with self._lock:
            return tuple(self._made)

    def close_idle(self) -> None:
        """Ends the programs that nobody has asked for long: the users whose jobs are over may be many."""
        with self._lock:
            made = tuple(self._made.values())
        for runs in made:
            runs.close_idle()

    def close(self) -> None:
        """Ends all programs."""
        with self._lock:
            for runs in self._made.values():
                runs.close()

    def _make(self, user: str) -> UserRunFiles:
        uid = uid_of(user)
        if uid is None:
            raise UserUnreachable(
                f"There is no Unix user {user} on the worker's machine (any more).", is_refused=True
            )
        root = self._run_root.replace(USER, user)

        def start() -> Conversation:
            # sudo wants no more rights for it than to start it: no variable is handed on.
            environment = self._environment if self._run_as.is_root else {}
            path = self._environment.get("PATH", "")
            argv, _ = self._run_as.command(user, [self._program, root], environment, path=path)
            return Conversation(argv, env=self._environment)

        return UserRunFiles(
            user, Path(root), uid=uid, transfers=self._transfers, start=start, clock=self._clock
        )
