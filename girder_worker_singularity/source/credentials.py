"""Which account a registry is asked with: from the site's own map, the environment, or what Docker keeps.

Passwords never get into an argument, a log, an error or a note: see `Credentials`.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.command_runner import CommandError
from girder_worker_singularity.errors import CredentialsInvalid
from girder_worker_singularity.image.reference import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from girder_worker_singularity.command_runner import CommandRunner

logger = logging.getLogger(__name__)

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_TIMEOUT_SECONDS = 30.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
#: Users of a helper that means an identity token, which is no password.
_TOKEN_USER = "<token>"  # noqa: S105
#: What Apptainer reads of its own environment.
ACCOUNT_VARIABLES = tuple(
    f"{program}_DOCKER_{word}"
    for program in ("APPTAINER", "SINGULARITY")
    for word in ("USERNAME", "PASSWORD")
)


@dataclass(frozen=True)
class Credentials:
    """An account of one registry; it shows no password."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """User and password as HTTP and Docker's files have them."""
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def secret_words(self) -> tuple[str, ...]:
        """What must not be in any text."""
        return (self.password, self.basic)


@dataclass(frozen=True)
class CredentialOptions:
    """What a site says about accounts."""

    auth_map: Path | None = None
    """Registry → account, in a file that only the worker's user can read."""
    username: str = ""
    """Of `registry`; plain, or both this and the password in base64."""
    password: str = field(default="", repr=False)
    registry: str = DEFAULT_REGISTRY
    authfile: Path | None = None
    """A file as Docker writes it (config.json), instead of those of `docker login` and `apptainer registry login`."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


class Keyring:
    """Finds the account for a registry."""

    def __init__(self, options: CredentialOptions, runner: CommandRunner) -> None:
        self._options = options
        self._runner = runner

    def find(self, registry: str) -> Credentials | None:
        """The account for this registry, or None; the most specific wins.

        The site's map; APPTAINER_DOCKER_USERNAME and _PASSWORD, which are for every registry; the site's account for
        its default registry; Docker's and Apptainer's files with their helpers. Raises CredentialsInvalid if the map
        cannot be used.
        """
        found = self._of_map(registry) or self._of_environment()
        if found is None and registry == self._options.registry:
            found = plain_account(self._options.username, self._options.password)
        return found or self._of_docker(registry)

    def _of_map(self, registry: str) -> Credentials | None:
        path = self._options.auth_map
        if path is None:
            return None
        try:
            if path.stat().st_mode & 0o077:
                raise CredentialsInvalid(f"The file {path} with passwords can be read by others.")
            entries: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CredentialsInvalid(f"The file {path} cannot be read: {error.strerror}.") from error
        except ValueError:
            # Without the cause, which quotes the text.
            raise CredentialsInvalid(f"The file {path} is not JSON.") from None
        if isinstance(entries, dict) and isinstance(entries.get("auths"), dict):
            entries = entries["auths"]
        if not isinstance(entries, dict):
            raise CredentialsInvalid(f"The file {path} is not a JSON object of registries.")
        return _of_entries(registry, entries)

    def _of_environment(self) -> Credentials | None:
        for program in ("APPTAINER", "SINGULARITY"):
            username = self._options.environment.get(f"{program}_DOCKER_USERNAME")
            password = self._options.environment.get(f"{program}_DOCKER_PASSWORD")
            if username and password:
                return Credentials(username, password)
        return None

    def _of_docker(self, registry: str) -> Credentials | None:
        for path in self._docker_files():
            try:
                config: Any = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if not isinstance(config, dict):
                continue
            found = self._of_helper(registry, config) or _of_entries(registry, config.get("auths"))
            if found is not None:
                return found
        return None

    def _docker_files(self) -> Iterator[Path]:
        if self._options.authfile is not None:
            yield self._options.authfile
            return
        environment = self._options.environment
        home = Path(environment.get("HOME", "/nonexistent"))
        yield Path(environment.get("APPTAINER_CONFIGDIR") or home / ".apptainer") / "docker-config.json"
        yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"

    def _of_helper(self, registry: str, config: dict[str, Any]) -> Credentials | None:
        helpers = config.get("credHelpers")
        for key in _keys(registry):
            name = helpers.get(key) if isinstance(helpers, dict) else None
            name = name or config.get("credsStore")
            if isinstance(name, str) and _HELPER_NAME.fullmatch(name):
                found = self._ask_helper(f"docker-credential-{name}", key)
                if found is not None:
                    return found
        return None

    def _ask_helper(self, program: str, server: str) -> Credentials | None:
        environment = {**os.environ, **self._options.environment}
        try:
            answer = self._runner.run(
                (program, "get"), timeout_seconds=_HELPER_TIMEOUT_SECONDS, stdin=server, env=environment
            )
            # What it printed may hold a password, whatever its exit status.
            if answer.returncode != 0:
                logger.info("%s has no account for %s (exit status %d)", program, server, answer.returncode)
                return None
            value = json.loads(answer.stdout)
            username, password = value["Username"], value["Secret"]
        except CommandError as error:
            logger.warning("No account for %s from %s: %s", server, program, type(error).__name__)
            return None
        except (ValueError, KeyError, TypeError):
            logger.warning("%s gave no account for %s that can be understood", program, server)
            return None
        if not (isinstance(username, str) and isinstance(password, str)) or username == _TOKEN_USER:
            return None
        return Credentials(username, password)


def plain_account(username: str, password: str) -> Credentials | None:
    """An account whose words are plain, or both in base64; None if one is missing. Pure."""
    if not username or not password:
        return None
    decoded = _from_base64(username), _from_base64(password)
    if decoded[0] and decoded[1]:
        return Credentials(decoded[0], decoded[1])
    return Credentials(username, password)


def authfile_text(registry: str, credentials: Credentials) -> str:
    """The file with this account alone, as Docker and Apptainer read it. Pure."""
    return json.dumps({"auths": {key: {"auth": credentials.basic} for key in _keys(registry)}})


def without_secrets(text: str, words: tuple[str, ...]) -> str:
    """The text with `***` in the place of these words. Pure."""
    for word in sorted(filter(None, words), key=len, reverse=True):
        text = text.replace(word, "***")
    return text


def _keys(registry: str) -> tuple[str, ...]:
    return (_DOCKER_HUB_KEY, registry, "index.docker.io") if registry == DEFAULT_REGISTRY else (registry,)


def _of_entries(registry: str, entries: Any) -> Credentials | None:
    if not isinstance(entries, dict):
        return None
    for key in (*_keys(registry), f"https://{registry}"):
        entry = entries.get(key)
        if not isinstance(entry, dict):
            continue
        if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
            return plain_account(entry["username"], entry["password"])
        text = _from_base64(entry.get("auth"))
        username, colon, password = (text or "").partition(":")
        if colon and username and password:
            return Credentials(username, password)
    return None


def _from_base64(text: Any) -> str | None:
    """What the text means if it is the base64 of printable text."""
    try:
        decoded = base64.b64decode(str(text or ""), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return decoded if decoded and decoded.isprintable() else None
