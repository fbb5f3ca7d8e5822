"""Images that an administrator placed as files: archives, OCI layouts, sandbox directories.

Only the stem of the SIF's name, which is one plain component, is looked for, and only in an administrator's
directory: no text of a user becomes a path.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.errors import ConversionFailed
from girder_worker_singularity.source.origin import Origin

if TYPE_CHECKING:
    from pathlib import Path

    from girder_worker_singularity.image.reference import ImageReference

PLACED = frozenset({"sandbox", "docker-archive", "oci-archive", "oci"})
"""Sources that an administrator placed as a file or directory."""
_REF_NAME = "org.opencontainers.image.ref.name"
_MOST_INDEX_BYTES = 4 * 1024 * 1024


def archive_origin(directory: Path, reference: ImageReference) -> Origin | None:
    """The archive `<stem>.tar` or the OCI layout `<stem>` of this image there, or None.

    Raises ConversionFailed if what lies there is neither, or does not hold this image.
    """
    archive, layout = directory / f"{reference.sif_stem}.tar", directory / reference.sif_stem
    if archive.is_file():
        return _from_archive(archive, reference)
    if (layout / "oci-layout").is_file():
        with contextlib.suppress(OSError):
            index = _checked_index((layout / "index.json").read_bytes(), layout)
            digest = _chosen(index, layout, reference)
            # `oci:PATH:TAG` is not understood ("stat two:1/index.json: no such file", Apptainer 1.4.5).
            inside = f"@{digest}" if len(index) > 1 else ""
            return Origin("oci", f"oci:{layout}{inside}", digest=digest, stamp=f"oci {digest}")
        raise _unusable(f"{layout / 'index.json'} cannot be read.")
    return None


def sandbox_origin(store: Path, reference: ImageReference) -> Origin | None:
    """The sandbox directory `<stem>` of this image in the store, or None.

    What changes inside it is not noticed: an administrator who changed a sandbox touches its top directory.
    """
    sandbox = store / reference.sif_stem
    if not any((sandbox / name).is_dir() for name in (".singularity.d", "bin", "usr")):
        return None
    return Origin("sandbox", str(sandbox), stamp=f"sandbox {sandbox.stat().st_mtime_ns}")


def is_still_placed(
    source: str, reference: ImageReference | None, *, store: Path, archive_dir: Path | None
) -> bool:
    """Whether the file or directory is still there of which a SIF was made; True for SIFs that were made of none."""
    if source not in PLACED:
        return True
    if reference is None:
        return False
    if source == "sandbox":
        return (store / reference.sif_stem).is_dir()
    if archive_dir is None:
        return False
    if source == "oci":
        return (archive_dir / reference.sif_stem / "oci-layout").is_file()
    return (archive_dir / f"{reference.sif_stem}.tar").is_file()


def _from_archive(archive: Path, reference: ImageReference) -> Origin:
    status = archive.stat()
    stamp = f"archive {status.st_size} {status.st_mtime_ns}"
    try:
        with tarfile.open(archive) as tar:
            index: bytes | None = None
            for member in tar:
                name = member.name.removeprefix("./")
                if name == "manifest.json":  # newer Docker engines write both: every reader knows this one
                    return Origin("docker-archive", f"docker-archive:{archive}", stamp=stamp)
                if name == "index.json" and member.size <= _MOST_INDEX_BYTES:
                    file = tar.extractfile(member)
                    index = file.read() if file is not None else None
    except (OSError, tarfile.TarError, EOFError) as error:
        raise _unusable(f"The archive {archive} of {reference} cannot be read: {error}.") from error
    if index is None:
        raise _unusable(f"The archive {archive} of {reference} is neither of Docker nor of OCI.")
    manifests = _checked_index(index, archive)
    if len(manifests) > 1:
        raise ConversionFailed(
            f"The archive {archive} holds {len(manifests)} images.",
            remedy="Apptainer takes archives of one image: unpack it, and place it as an OCI layout.",
        )
    digest = _chosen(manifests, archive, reference)
    # Its layers are copied as they are, those of a Docker archive are compressed on the way.
    return Origin(
        "oci-archive", f"oci-archive:{archive}", digest=digest, stamp=stamp, size_bytes=status.st_size
    )


def _checked_index(content: bytes, where: Path) -> list[dict[str, Any]]:
    try:
        manifests = json.loads(content)["manifests"]
        if isinstance(manifests, list) and all(isinstance(entry, dict) for entry in manifests):
            return manifests
    except (ValueError, KeyError, TypeError):
        pass
    raise _unusable(f"The index of {where} is not that of an OCI image.")


def _chosen(manifests: list[dict[str, Any]], where: Path, reference: ImageReference) -> str | None:
    """The digest of the image inside that is meant: the only one, or the one with its name."""
    names = (reference.tag or "latest", str(reference), reference.canonical)
    fitting = [
        entry
        for entry in manifests
        if len(manifests) == 1 or (entry.get("annotations") or {}).get(_REF_NAME) in names
    ]
    if not fitting:
        raise _unusable(f"{where} holds {len(manifests)} images, and none is named {reference}.")
    digest = fitting[0].get("digest")
    digest = digest if isinstance(digest, str) else None
    if digest is None and len(manifests) > 1:
        raise _unusable(f"{where} does not say which digest {reference} has.")
    if reference.digest is not None and digest is not None and digest != reference.digest:
        raise _unusable(f"{where} holds {digest}, not {reference}.")
    return digest


def _unusable(what: str) -> ConversionFailed:
    return ConversionFailed(
        what, remedy="Replace it, or take it away to have the image taken from elsewhere."
    )
