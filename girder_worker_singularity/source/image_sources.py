"""Where an image can be had from, in the order a site wants."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from girder_worker_singularity.image.pull_names import PullNames
from girder_worker_singularity.image.reference import parse_image_reference
from girder_worker_singularity.source.credentials import CredentialOptions, Credentials, Keyring
from girder_worker_singularity.source.docker_engine import EngineImage, engine_image
from girder_worker_singularity.source.local_files import archive_origin, sandbox_origin
from girder_worker_singularity.source.origin import REMOTE, ExpectedBytes, Origin
from girder_worker_singularity.source.proxies import Proxies
from girder_worker_singularity.source.registry_connection import RegistryAccess
from girder_worker_singularity.source.registry_digest import registry_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.image.reference import ImageReference

Place = Literal["sandbox", "archive", "docker-daemon", "registry"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class SourceOptions:
    """Where images may come from."""

    places: tuple[Place, ...] = PLACES
    """In this order. `registry` stands for libraries too."""
    archive_dir: Path | None = None
    """An administrator's directory of archives and OCI layouts."""
    names: PullNames = field(default_factory=PullNames)
    credentials: CredentialOptions = field(default_factory=CredentialOptions)
    proxies: Proxies = field(default_factory=Proxies)


#: Which digest a registry has for an image now, see `registry_digest`.
AskRegistry: TypeAlias = "Callable[[ImageReference, RegistryAccess], str | None]"
#: How large the parts of an image in a registry are, see `registry_layers`.
AskLayers: TypeAlias = "Callable[[ImageReference, RegistryAccess], Mapping[str, int] | None]"
#: Whether the Docker engine of this host has an image, see `engine_image`.
AskEngine: TypeAlias = "Callable[[ImageReference], EngineImage | None]"


class ImageSources:
    """Looks for an image in all places of a site."""

    def __init__(
        self,
        store: Path,
        runner: CommandRunner,
        options: SourceOptions,
        *,
        plain_http_registries: tuple[str, ...] = (),
        ask_registry: AskRegistry = registry_digest,
        ask_engine: AskEngine = engine_image,
        ask_layers: AskLayers | None = None,
    ) -> None:
        self._store = store
        self._options = options
        self._plain_http_registries = plain_http_registries
        self._keyring = Keyring(options.credentials, runner)
        self._ask_registry = ask_registry
        self._ask_engine = ask_engine
        self._ask_layers = ask_layers

    def origins(self, reference: ImageReference) -> Iterator[Origin]:
        """Where the image can be had, best first; a place is only asked when its turn comes.

        A registry is always among them, whether it answers or not. Raises ConversionFailed about a broken archive and
        CredentialsInvalid.
        """
        looks: dict[Place, Callable[[ImageReference], Origin | None]] = {
            "sandbox": lambda wanted: sandbox_origin(self._store, wanted),
            "archive": self._archive,
            "docker-daemon": self._engine,
            "registry": self._registry,
        }
        for place in self._options.places:
            # What lies in a registry as a SIF is not looked for anywhere else.
            if reference.scheme != "docker" and place != "registry":
                continue
            origin = looks[place](reference)
            if origin is not None:
                yield origin

    def credentials(self, origin: Origin) -> Credentials | None:
        """The account for this origin; raises CredentialsInvalid."""
        if origin.source not in REMOTE or not origin.registry:
            return None
        return self._keyring.find(origin.registry)

    def secret_words(self, credentials: Credentials | None) -> tuple[str, ...]:
        """What a program that is given these credentials must not be quoted with."""
        own = credentials.secret_words if credentials is not None else ()
        return (*own, *self._options.proxies.completed(os.environ).secret_words)

    def expected_bytes(
        self, origin: Origin, credentials: Credentials | None
    ) -> Callable[[], ExpectedBytes | None]:
        """A function that tells what is known by then of the image's size; a registry is asked meanwhile."""
        if self._ask_layers is None or origin.source not in ("docker", "oras"):
            known = ExpectedBytes(total=origin.size_bytes)
            return lambda: known
        answers: list[ExpectedBytes] = []
        ask, reference = self._ask_layers, parse_image_reference(origin.uri.removeprefix("docker://"))

        def look() -> None:
            parts = ask(reference, self._access(credentials))
            if parts:
                answers.append(ExpectedBytes(parts))

        threading.Thread(target=look, name="gw-registry", daemon=True).start()
        return lambda: answers[0] if answers else None

    def _access(self, credentials: Credentials | None) -> RegistryAccess:
        proxies = self._options.proxies
        if proxies.environment:
            proxies = proxies.completed(os.environ)
        return RegistryAccess(self._plain_http_registries, credentials, proxies)

    def _archive(self, reference: ImageReference) -> Origin | None:
        directory = self._options.archive_dir
        return archive_origin(directory, reference) if directory is not None else None

    def _engine(self, reference: ImageReference) -> Origin | None:
        image = self._ask_engine(reference)
        if image is None:
            return None
        # The engine knows images by the names they were given there, and wants a tag.
        tag = "" if reference.tag or reference.digest else ":latest"
        uri = f"docker-daemon:{reference}{tag}"
        return Origin(
            "docker-daemon", uri, digest=image.digest, stamp=image.image_id, size_bytes=image.saved_bytes
        )

    def _registry(self, reference: ImageReference) -> Origin:
        pulled = self._options.names.pulled(reference)
        registry = pulled.canonical_registry
        if pulled.scheme == "library":
            return Origin("library", pulled.uri, registry)
        digest = self._ask_registry(pulled, self._access(self._keyring.find(registry)))
        if digest is None:
            return Origin(pulled.scheme, pulled.uri, registry)
        # Pinned, so that what was looked up is what is pulled.
        prefix = "docker://" if pulled.scheme == "docker" else ""
        uri = f"{prefix}{pulled.canonical_repository}@{digest}"
        return Origin(pulled.scheme, uri, registry, digest=digest)
