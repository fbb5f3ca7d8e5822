"""What a stack remembers between commands: ports, accounts, passwords, findings."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from .errors import DevstackError
from .files import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from .layout import Layout


@dataclass
class State:
    """Everything remembered that is no secret; world-readable, so that `status` needs no root."""

    job_user: str
    service_user: str
    node_prefix: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    created_accounts: dict[str, int] = field(default_factory=dict)  # name -> uid
    cgroups: str = ""  # "v1" when memory limits are enforced, "none" when not, "" before the first start
    notes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, layout: Layout) -> State | None:
        """The remembered state, or None where no stack was ever installed."""
        try:
            text = layout.state_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise DevstackError(f"{layout.state_file} is not readable: run this as root") from error
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise DevstackError(
                f"{layout.state_file} is damaged ({error}): remove {layout.base} by hand"
            ) from error

    def save(self, layout: Layout) -> None:
        """Remember all of it."""
        write_file(layout.state_file, json.dumps(asdict(self), indent=2) + "\n", mode=0o644)


@dataclass(frozen=True)
class Secrets:
    """Passwords made for one stack."""

    rabbitmq_password: str
    erlang_cookie: str
    girder_admin_password: str

    @classmethod
    def ensure(cls, path: Path) -> Secrets:
        """The stack's passwords, made at the first call."""
        if path.exists():
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        made = cls(secrets.token_hex(16), secrets.token_hex(16), secrets.token_hex(12))
        write_file(path, json.dumps(asdict(made), indent=2) + "\n", mode=0o600)
        return made
