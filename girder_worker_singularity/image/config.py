"""What an image says about how it wants to be started. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENTRY_PATH_LABEL = "entry_path"
NVIDIA_LABEL = "com.nvidia.volumes.needed"
_FALSE_WORDS = frozenset({"", "0", "false", "no", "none", "off"})


@dataclass(frozen=True)
class ImageConfig:
    """How a container of this image is started."""

    entrypoint: tuple[str, ...] | None = None
    """The program and its first arguments; empty if the arguments name the program, None if not known."""
    command: tuple[str, ...] = ()
    """The arguments in case there are none."""
    environment: tuple[str, ...] = ()
    """`NAME=value` as the image sets them; Apptainer sets them by itself."""
    working_dir: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict)
    needs_nvidia: bool = False


def image_config(
    oci_config: Mapping[str, Any] | None, labels: Mapping[str, str], *, overrides_runscript: bool = False
) -> ImageConfig:
    """How this image is started, from its OCI configuration and the labels of its SIF.

    `overrides_runscript` says that a definition file replaced what the image starts: then its Entrypoint
    is not what should run.
    """
    config = oci_config or {}
    all_labels = {**_labels(config.get("Labels")), **labels}
    known = oci_config is not None and not overrides_runscript
    return ImageConfig(
        entrypoint=_words(config.get("Entrypoint")) if known else None,
        command=_words(config.get("Cmd")) if known else (),
        environment=_words(config.get("Env")),
        working_dir=_working_dir(all_labels.get(ENTRY_PATH_LABEL), config.get("WorkingDir")),
        labels=all_labels,
        needs_nvidia=all_labels.get(NVIDIA_LABEL, "").strip().lower() not in _FALSE_WORDS,
    )


def _working_dir(*candidates: object) -> str:
    for candidate in candidates:
        if isinstance(candidate, str) and candidate.strip():
            return posixpath.normpath(posixpath.join("/", candidate.strip()))
    return "/"


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):  # the shell form, as some builders write it
        return ("/bin/sh", "-c", value)
    return tuple(str(word) for word in value) if isinstance(value, list | tuple) else ()


def _labels(value: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, Mapping) else {}
