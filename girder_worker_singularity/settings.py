"""The settings of images and containers: section ``[singularity]`` of the configuration files."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from girder_worker_singularity.image.pull_names import PullNames
from girder_worker_singularity.run.image_rules import SMALLEST_OVERLAY_MIB, parse_image_rule
from girder_worker_singularity.settings_file import read_values, setting, settings_files

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTION = "singularity"


def _image_words(text: str) -> str:
    parse_image_rule(text)
    return text


class SingularitySection(BaseModel):
    """How Docker images become SIFs and how containers run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sif_image_path: Path | None = setting(
        None,
        "Directory of the SIFs. Worker and compute nodes must see it. Empty: `sif` in the jobs root.",
        env=("SIF_IMAGE_PATH",),
    )
    apptainer: str = setting(
        "apptainer",
        "The apptainer (or singularity) program, by name or absolute path, here and on the nodes.",
    )
    pull_policy: Literal["", "always", "if-not-present", "if-newer", "never"] = setting(
        "",
        "When an image is made anew, whatever a task asks: `always` (unless it is known to be current), `if-not-present`,"
        " `if-newer` (only if the tag is known to have moved), `never` (only what is in the store). Empty: as the task says.",
        env=("GIRDER_WORKER_SINGULARITY_PULL_POLICY",),
    )
    sources: list[Literal["sandbox", "archive", "docker-daemon", "registry"]] = setting(
        ["sandbox", "archive", "docker-daemon", "registry"],
        "Where images are taken from that have no SIF, in this order: a `sandbox` directory in the store, an `archive` in"
        " `archive_dir`, this machine's Docker engine, a registry.",
    )
    archive_dir: Path | None = setting(
        None,
        "Directory of archives (docker save, oci-archive: `NAME.tar`) and OCI layouts (`NAME`). Empty: none.",
    )
    schemes: list[Literal["oras", "library"]] = setting(
        [], "Schemes that a task's image may have besides docker: `oras`, `library`."
    )
    library: str = setting(
        "",
        "URL of the server that `library://user/collection/name` is fetched from. Empty: the default of the worker's user"
        " (`apptainer remote`), which also is the only one that is shown a token.",
    )
    default_registry: str = setting(
        "",
        "Registry of names that have none, as host:port. Empty: Docker Hub.",
        env=("JARVICE_SYSTEM_REGISTRY",),
    )
    repository_base: str = setting(
        "", "Path put before names that have neither registry nor path.", env=("JARVICE_SYSTEM_REPO_BASE",)
    )
    default_tag: str = setting(
        "", "Tag of names that have neither registry nor tag. Empty: latest.", env=("JARVICE_IMAGES_TAG",)
    )
    registry_map: dict[str, str] = setting(
        {},
        "Mirrors, `prefix = mirror`, in the section [singularity.registry_map]: what begins with registry (and path) on the"
        " left is pulled from the right. The longest prefix counts; the SIF's name stays.",
    )
    plain_http_registries: list[str] = setting([], "Registries spoken to without TLS, as host:port.")
    auth_map: Path | None = setting(
        None,
        "File of mode 0600 with accounts: JSON, registry → `username` and `password`. It wins over all others.",
        env=("GIRDER_WORKER_SINGULARITY_AUTH_MAP",),
    )
    docker_username: SecretStr = setting(
        SecretStr(""),
        "User at `default_registry` (or Docker Hub); plain, or this and the password in base64.",
        env=("JARVICE_DOCKER_USERNAME",),
    )
    docker_password: SecretStr = setting(
        SecretStr(""), "Password of `docker_username`.", env=("JARVICE_DOCKER_PASSWORD",)
    )
    http_proxy: SecretStr = setting(
        SecretStr(""),
        "Proxy for registries without TLS. Empty: as the worker's environment says.",
        env=("JARVICE_BAREMETAL_HTTP_PROXY",),
    )
    https_proxy: SecretStr = setting(
        SecretStr(""),
        "Proxy for registries with TLS. Empty: as the worker's environment says.",
        env=("JARVICE_BAREMETAL_HTTPS_PROXY",),
    )
    no_proxy: str = setting(
        "",
        "Hosts and domains reached without a proxy, joined by commas.",
        env=("JARVICE_BAREMETAL_NO_PROXY",),
    )
    allow_images: list[str] = setting(
        [],
        "Patterns (`*`, `?`) for full names, as `docker.io/team/*`; only images that fit one are allowed. Empty: all.",
    )
    deny_images: list[str] = setting([], "Patterns for full names; images that fit one are refused. Wins.")
    verify_signatures: bool = setting(
        False,
        "Whether a SIF made elsewhere (by hand, oras, library) must be signed by a key in the keyring of the worker's user.",
    )
    tmp_dir: Path | None = setting(
        None,
        "Where images are unpacked for conversion. Empty: the system's temporary directory (TMPDIR), often small.",
        env=("JARVICE_SINGULARITY_TMPDIR",),
    )
    cache_dir: Path | None = setting(None, "Apptainer's cache of layers. Empty: none is kept.")
    convert_timeout_seconds: float = setting(7200.0, "When a conversion is given up.")
    min_free_bytes: int = setting(
        2_000_000_000, "A conversion does not start with less free space than this."
    )
    prune_unused_days: float = setting(
        0.0,
        "Remove SIFs that no job used for this many days; images that come back are converted again. 0: never.",
    )
    max_store_bytes: int = setting(
        0,
        "Remove the SIFs that were not used for longest while all together are larger than this. 0: no limit.",
    )
    run_options: dict[str, Any] = setting(
        {}, "Docker run options for every container, as JSON.", env=("GIRDER_WORKER_DOCKER_RUN_OPTIONS",)
    )

    @model_validator(mode="after")
    def _names_are_names(self) -> SingularitySection:
        _ = self.pull_names
        return self

    gpu_kind: Literal["nv", "rocm", "none"] = setting(
        "nv",
        "How a container that wants GPUs gets them: `nv` (NVIDIA), `rocm` (AMD), `none` (not at all, nor does its job).",
    )
    overlay_mib: int = setting(
        600,
        "Size in MiB of an overlay that is given none in [singularity.images]; 0: a tmpfs instead of it.",
        env=("JARVICE_SINGULARITY_OVERLAY_SIZE",),
    )
    images: dict[str, Annotated[str, AfterValidator(_image_words)]] = setting(
        {},
        "What differs for some images, `pattern = words`, in the section [singularity.images]. Words, separated by commas:"
        " writable=none, =tmpfs, =overlay or =overlay:MIB; fakeroot; net=none or =host; gpu=nv, =rocm or =none.",
    )

    @property
    def pull_names(self) -> PullNames:
        """How names are completed and redirected; raises SettingsInvalid."""
        return PullNames(self.default_registry, self.repository_base, self.default_tag, self.registry_map)

    @field_validator("archive_dir")
    @classmethod
    def _plain_path(cls, value: Path | None) -> Path | None:
        if value is not None and (not value.is_absolute() or ":" in str(value)):
            msg = "must be absolute and without a colon, which Apptainer takes for the end of the path"
            raise ValueError(msg)
        return value

    @field_validator("library")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if value and re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", value) is None:
            msg = "must be a URL such as https://library.example.org, without an account"
            raise ValueError(msg)
        return value

    @field_validator("overlay_mib", "prune_unused_days", "max_store_bytes", "min_free_bytes")
    @classmethod
    def _not_negative(cls, value: float) -> float:
        if not 0 <= value < math.inf:
            msg = "must not be negative, and finite"
            raise ValueError(msg)
        return value

    @field_validator("overlay_mib")
    @classmethod
    def _large_enough(cls, value: int) -> int:
        if 0 < value < SMALLEST_OVERLAY_MIB:
            msg = f"must be {SMALLEST_OVERLAY_MIB} at least, which is Apptainer's smallest, or 0"
            raise ValueError(msg)
        return value

    @field_validator("convert_timeout_seconds")
    @classmethod
    def _some_time(cls, value: float) -> float:
        if not 0 < value < math.inf:
            msg = "must be more than 0, and finite"
            raise ValueError(msg)
        return value

    @field_validator("apptainer")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            msg = "must name a program"
            raise ValueError(msg)
        return value

    @field_validator("run_options", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if isinstance(value, str):
            return json.loads(value) if value.strip() else {}
        return value


def load_singularity_settings(environment: Mapping[str, str] | None = None) -> SingularitySection:
    """The section ``[singularity]`` of the files that GIRDER_WORKER_SLURM_CONFIG names, and of the environment.

    The same as the worker sees it; the files' other sections are not looked at. Raises SettingsInvalid naming file
    and line.
    """
    env = os.environ if environment is None else environment
    read = read_values({SECTION: SingularitySection}, settings_files(env), env, skip_other_sections=True)
    try:
        return SingularitySection(**read.values.get(SECTION, {}))
    except ValidationError as error:
        raise read.invalid(error, section=SECTION) from error
