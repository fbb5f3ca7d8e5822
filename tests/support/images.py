"""Tiny container images for tests, made in a moment without Docker and pushed to a registry.

An image is one layer: a static busybox with links for its commands, plus the files a test wants. It is written
as an OCI layout by hand, so that any user can make one; `skopeo` pushes it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BUSYBOX = Path("/usr/bin/busybox")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
_DIRECTORIES = ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "mnt", "usr/bin", "var/tmp", "home")

SHOW_ARGUMENTS = '#!/bin/sh\nfor argument in "$@"; do printf "<%s>\\n" "$argument"; done\n'
"""A program that prints each of its arguments between angle brackets."""

SHOW_SURROUNDINGS = '#!/bin/sh\npwd\necho "--"\nenv\n'
"""A program that prints its working directory and its environment."""


def build_and_push_image(
    registry: str,
    name: str,
    files: Mapping[str, str | bytes] | None = None,
    entrypoint: Sequence[str] | None = None,
    workdir: str | None = None,
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    command: Sequence[str] | None = None,
    credentials: str | None = None,
    applets: bool = True,
) -> str:
    """The reference `registry/name` of a new image that is now in the registry.

    `name` is like `team/tool:1`. Files whose text starts with `#!` are executable.
    """
    reference = f"{registry}/{name}"
    with tempfile.TemporaryDirectory(prefix="test-image-") as directory:
        layout = build_oci_layout(
            Path(directory) / "oci",
            files,
            entrypoint=entrypoint,
            workdir=workdir,
            env=env,
            labels=labels,
            command=command,
            applets=applets,
        )
        argv = ["skopeo", "copy", "--insecure-policy", "--quiet", "--dest-tls-verify=false"]
        if credentials:
            argv += ["--dest-creds", credentials]
        pushed = subprocess.run(
            [*argv, f"oci:{layout}:latest", f"docker://{reference}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    if pushed.returncode != 0:
        raise AssertionError(f"skopeo could not push {reference}: {pushed.stderr}")
    return reference


def build_oci_layout(
    layout: Path,
    files: Mapping[str, str | bytes] | None = None,
    *,
    entrypoint: Sequence[str] | None = None,
    workdir: str | None = None,
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    applets: bool = True,
) -> Path:
    """The directory of a new image in OCI layout, its tag being `latest`."""
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    plain_layer = _layer(files or {}, workdir, applets=applets)
    layer = _blob(layout, gzip.compress(plain_layer, compresslevel=1, mtime=0))
    config: dict[str, Any] = {
        "Env": ["PATH=/usr/bin:/bin", *(f"{name}={value}" for name, value in (env or {}).items())],
        "Labels": dict(labels or {}),
    }
    if entrypoint is not None:
        config["Entrypoint"] = list(entrypoint)
    if command is not None:
        config["Cmd"] = list(command)
    if workdir is not None:
        config["WorkingDir"] = workdir
    image = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain_layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor("config.v1+json", _blob(layout, json.dumps(image).encode())),
        "layers": [_descriptor("layer.v1.tar+gzip", layer)],
    }
    index_entry = _descriptor("manifest.v1+json", _blob(layout, json.dumps(manifest).encode()))
    index_entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index_entry]}))
    return layout


def missing_programs() -> list[str]:
    """What this host lacks to make images."""
    missing = [name for name in ("skopeo",) if shutil.which(name) is None]
    return missing if BUSYBOX.exists() else [*missing, str(BUSYBOX)]


def _layer(files: Mapping[str, str | bytes], workdir: str | None, *, applets: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        directories = dict.fromkeys(_DIRECTORIES)
        for path in [*files, *([f"{workdir}/x"] if workdir else [])]:
            parents = list(Path(path.lstrip("/")).parents)[:-1]
            directories.update(dict.fromkeys(str(parent) for parent in reversed(parents)))
        for directory in directories:
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory.endswith("tmp") else 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
        for applet in _applets() if applets else ():
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _add(tar, "etc/group", b"root:x:0:\n")
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            _add(tar, path.lstrip("/"), data, mode=0o755 if data.startswith(b"#!") else 0o644)
    return buffer.getvalue()


def _applets() -> list[str]:
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, timeout=10, check=True)
    return [name for name in listed.stdout.split() if name != "busybox" and "/" not in name]


def _add(tar: tarfile.TarFile, path: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _blob(layout: Path, content: bytes) -> tuple[str, int]:
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(content)
    return f"sha256:{digest}", len(content)


def _descriptor(kind: str, blob: tuple[str, int]) -> dict[str, Any]:
    digest, size = blob
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": size}


def registry_from_environment() -> str | None:
    """`host:port` of the registry that the development stack runs, if there is one."""
    return os.environ.get("DEVSTACK_REGISTRY") or None
