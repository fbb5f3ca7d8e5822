"""RabbitMQ with a port mapper (epmd) of its own, so that nothing is shared with another broker."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from . import certificates
from .files import ensure_directory, write_file
from .ports import HOST, answers, exchange
from .processes import ProcessSpec, wait_until
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence

BROKER_USER = "girder"
_PROGRAMS = Path("/usr/lib/rabbitmq/bin")


class RabbitMQ(Service):
    """The broker and its epmd, run by the service account."""

    name = "rabbitmq"
    port_names = ("rabbitmq", "rabbitmq-tls", "rabbitmq-distribution", "epmd")
    start_seconds = 120
    grace_seconds = 40

    def process_names(self) -> list[str]:
        """The port mapper first: the broker would otherwise start one outside our supervision."""
        return ["rabbitmq-epmd", self.name]

    def prepare(self) -> None:
        """Write the configuration, the certificates, the Erlang cookie and the rabbitmqctl wrapper."""
        layout, owner = self.context.layout, self.context.service_user
        secrets = self.context.secrets()
        home = layout.below("rabbitmq")
        ensure_directory(home, mode=0o700, owner=owner)
        ensure_directory(home / "log", mode=0o700, owner=owner)
        write_file(home / ".erlang.cookie", secrets.erlang_cookie, mode=0o400, owner=owner)
        write_file(home / "enabled_plugins", "[].\n", mode=0o600, owner=owner)
        certificates.ensure(self.context)
        signed = layout.certificates
        # The user is made at the first start of an empty database; but for TLS the rest stays as in a stock broker.
        text = (
            f"default_user = {BROKER_USER}\n"
            f"default_pass = {secrets.rabbitmq_password}\n"
            "log.console = true\n"
            "log.console.level = info\n"
            "log.file = false\n"
            f"listeners.ssl.default = {HOST}:{self.context.port('rabbitmq-tls')}\n"
            f"ssl_options.cacertfile = {signed / 'ca.pem'}\n"
            f"ssl_options.certfile = {signed / 'server.pem'}\n"
            f"ssl_options.keyfile = {signed / 'server-key.pem'}\n"
            "ssl_options.verify = verify_peer\n"
            "ssl_options.fail_if_no_peer_cert = true\n"
        )
        write_file(home / "rabbitmq.conf", text, mode=0o600, owner=owner)
        write_file(layout.bin / "rabbitmqctl", self._wrapper(), mode=0o755)

    def processes(self) -> Sequence[ProcessSpec]:
        """The port mapper and the broker in the foreground."""
        environment = {**self.context.service_environment(), **self._environment()}
        account = self.context.service_user
        mapper = ["/usr/bin/epmd", "-address", HOST, "-port", str(self.context.port("epmd"))]
        epmd = ProcessSpec("rabbitmq-epmd", mapper, account, environment)
        return [epmd, ProcessSpec(self.name, [_PROGRAMS / "rabbitmq-server"], account, environment)]

    def answers(self) -> bool:
        """Whether it opens an AMQP conversation."""
        return exchange(self.context.port("rabbitmq"), b"AMQP\x00\x00\x09\x01").startswith(b"\x01\x00\x00")

    def stop(self, *, kill: bool = False) -> bool:
        """End the broker, and wait until its port is free again."""
        ran = super().stop(kill=kill)
        if ran:
            wait_until(lambda: not answers(self.context.port("rabbitmq")), timeout_seconds=5)
        return ran

    def _environment(self) -> dict[str, str]:
        home = self.context.layout.below("rabbitmq")
        return {
            "HOME": str(home),
            "RABBITMQ_NODENAME": "devstack@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.context.port("rabbitmq")),
            "RABBITMQ_DIST_PORT": str(self.context.port("rabbitmq-distribution")),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # No busy waiting: it costs a small machine half a core.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the broker instead of waiting for it
            "ERL_EPMD_PORT": str(self.context.port("epmd")),
            "ERL_EPMD_ADDRESS": HOST,
        }

    def _wrapper(self) -> str:
        account = self.context.service_user
        settings = {**self._environment(), "LANG": "C.UTF-8"}
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
        return (
            "#!/bin/sh\n"
            "# rabbitmqctl of this stack's broker; needs root (or sudo).\n"
            'if [ "$(id -u)" != 0 ]; then exec sudo -n "$0" "$@"; fi\n'
            "cd /\n"
            f'exec setpriv --reuid={account} --regid="$(id -g {account})" --clear-groups env {words} \\\n'
            f'    {_PROGRAMS}/rabbitmqctl "$@"\n'
        )
