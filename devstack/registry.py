"""A container registry on plain HTTP, so that images can be pushed and pulled without the internet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .files import ensure_directory, write_file
from .ports import HOST, exchange
from .processes import ProcessSpec
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence


class Registry(Service):
    """docker-registry (distribution) with a file system below the base directory."""

    name = "registry"
    port_names = ("registry",)

    def prepare(self) -> None:
        """Write its configuration."""
        layout, owner = self.context.layout, self.context.service_user
        ensure_directory(layout.below("registry"), mode=0o700, owner=owner)
        text = (
            "version: 0.1\n"
            "log: {level: warn}\n"
            "storage:\n"
            f"  filesystem: {{rootdirectory: {layout.below('registry')}}}\n"
            "  delete: {enabled: true}\n"
            f"http: {{addr: '{HOST}:{self.context.port('registry')}'}}\n"
        )
        write_file(layout.etc / "registry.yml", text, mode=0o644)

    def processes(self) -> Sequence[ProcessSpec]:
        """The server in the foreground."""
        argv = ["/usr/bin/docker-registry", "serve", self.context.layout.etc / "registry.yml"]
        return [ProcessSpec(self.name, argv, self.context.service_user, self.context.service_environment())]

    def answers(self) -> bool:
        """Whether the API's root says 200."""
        reply = exchange(self.context.port("registry"), b"GET /v2/ HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return b" 200 " in reply.partition(b"\r\n")[0]
