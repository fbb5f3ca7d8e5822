"""Redis, which Girder sends its notifications through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .files import ensure_directory
from .ports import HOST, exchange
from .processes import ProcessSpec
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence


class Redis(Service):
    """redis-server on the loopback address, in memory only."""

    name = "redis"
    port_names = ("redis",)

    def prepare(self) -> None:
        """Make its directory."""
        ensure_directory(self.context.layout.below("redis"), mode=0o700, owner=self.context.service_user)

    def processes(self) -> Sequence[ProcessSpec]:
        """The server in the foreground."""
        argv = ["/usr/bin/redis-server", "--port", str(self.context.port("redis")), "--bind", HOST]
        argv += ["--dir", str(self.context.layout.below("redis")), "--save", "", "--daemonize", "no"]
        return [ProcessSpec(self.name, argv, self.context.service_user, self.context.service_environment())]

    def answers(self) -> bool:
        """Whether it returns a ping."""
        return exchange(self.context.port("redis"), b"PING\r\n").startswith(b"+PONG")
