"""A private munge daemon, so that the machine's own munge and its key stay untouched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .commands import succeeds
from .files import ensure_directory, write_file
from .processes import ProcessSpec
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence


class Munge(Service):
    """munged with its own key and socket, run by the service account."""

    name = "munge"

    def prepare(self) -> None:
        """Make the key once, and the directories munged insists on owning."""
        layout, owner = self.context.layout, self.context.service_user
        ensure_directory(layout.etc / "munge", mode=0o700, owner=owner)
        ensure_directory(layout.run / "munge", mode=0o755, owner=owner)
        key = layout.etc / "munge" / "key"
        if not key.exists():
            write_file(key, os.urandom(128), mode=0o400, owner=owner)

    def processes(self) -> Sequence[ProcessSpec]:
        """The daemon in the foreground."""
        layout = self.context.layout
        argv = [
            "/usr/sbin/munged",
            "--foreground",
            "--force",  # a socket left by a killed predecessor is replaced
            f"--socket={layout.munge_socket}",
            f"--key-file={layout.etc / 'munge' / 'key'}",
            f"--pid-file={layout.run / 'munge' / 'pid'}",
            f"--seed-file={layout.etc / 'munge' / 'seed'}",
            f"--log-file={layout.run / 'munge' / 'munged.log'}",
            "--num-threads=4",
        ]
        return [ProcessSpec(self.name, argv, self.context.service_user, self.context.service_environment())]

    def answers(self) -> bool:
        """Whether a credential can be had."""
        socket = self.context.layout.munge_socket
        return socket.exists() and succeeds(
            ["/usr/bin/munge", "--no-input", "--output=/dev/null", f"--socket={socket}"], timeout_seconds=5
        )
