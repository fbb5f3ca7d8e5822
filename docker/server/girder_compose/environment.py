"""What Girder's processes find in their environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from .broker import OwnBroker, broker_urls
from .errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRETS = Path("/run/secrets")
WORKER_CONFIG = Path("/etc/girder-worker/worker.dist.cfg")
DATABASE = "girder"


@dataclass(frozen=True)
class Site:
    """Addresses and passwords of this deployment, as a container sees them."""

    environment: Mapping[str, str]
    secrets: Path = SECRETS
    worker_config: Path = WORKER_CONFIG

    @classmethod
    def here(cls) -> Site:
        """This container's."""
        return cls(os.environ)

    def secret(self, name: str) -> str:
        """A password; raises SetupError where the container was given none."""
        try:
            value = (self.secrets / name).read_text(encoding="utf-8").strip()
        except OSError:
            value = ""
        if not value:
            raise SetupError(
                f"{name.upper()} is empty or missing: run docker/make-env.sh --update, then docker compose up -d --wait."
            )
        return value

    @property
    def mongodb_user(self) -> str:
        """Girder's account in MongoDB."""
        return self.environment.get("MONGODB_USER") or "girder"

    @property
    def rabbitmq_user(self) -> str:
        """The account of server and workers in RabbitMQ."""
        return self.environment.get("RABBITMQ_USER") or "girder"

    def mongo_uri(self) -> str:
        """Girder's database, with its password."""
        given = self.environment.get("GIRDER_MONGO_URI")
        account = (
            f"{self.mongodb_user}:{quote(self.secret('mongodb_password'), safe='')}" if not given else ""
        )
        return given or f"mongodb://{account}@mongodb:27017/{DATABASE}?authSource=admin"

    def broker_urls(self) -> tuple[str, str]:
        """Broker and result backend; raises SetupError where nothing says them."""
        try:
            text = self.worker_config.read_text(encoding="utf-8")
        except IsADirectoryError as error:
            # Docker makes a directory of a mounted file that is not there.
            raise SetupError(
                "WORKER_CONFIG in .env names a file that does not exist: a directory was made there."
            ) from error
        except OSError:
            text = None
        own = OwnBroker(
            self.environment.get("RABBITMQ_HOST") or "rabbitmq",
            self.rabbitmq_user,
            self.secret("rabbitmq_password"),
        )
        return broker_urls(self.environment, "worker.dist.cfg", text, own)

    def for_girder(self) -> dict[str, str]:
        """The whole environment of `girder serve` and of Girder's local worker."""
        broker, backend = self.broker_urls()
        # An empty variable would count as set.
        inherited = {name: value for name, value in self.environment.items() if value}
        return {
            **inherited,
            "GIRDER_MONGO_URI": self.mongo_uri(),
            "GIRDER_WORKER_BROKER": broker,
            "GIRDER_WORKER_BACKEND": backend,
        }
