"""One image → one SIF file, with `apptainer build`; Apptainer's failures become errors here and nowhere else."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from girder_worker_singularity.command_runner import (
    CommandNotFound,
    CommandRunner,
    CommandStopped,
    CommandTimeout,
)
from girder_worker_singularity.errors import (
    ContainerError,
    ConversionFailed,
    ConversionStopped,
    ConversionTimeout,
    ImageNotFound,
    NotEnoughSpace,
    ProgramMissing,
    RegistryRefused,
    RegistryUnreachable,
    StoreNotWritable,
)
from girder_worker_singularity.lease import Holder, read_holder, write_holder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_singularity.image.reference import ImageReference

Source = Literal["docker", "docker-daemon"]

BUILD_DIRECTORY_PREFIX = "girder-sif-"
_OWNER_FILE = "owner.json"
_VERSION = re.compile(r"^(apptainer|singularity|singularity-ce)\s+version\s+(\d+)\.(\d+)", re.IGNORECASE)
_VERSION_TIMEOUT_SECONDS = 60.0
_LAST_LINES = 12
# Level 3: 202 s instead of gzip's 579 s for a 1.5 GB image, at the same size.
_FAST_COMPRESSION = "-comp zstd -Xcompression-level 3"
_COMPRESSION_REFUSED = re.compile(
    r"Compressor \S+ is not supported|mksquashfs.*(?:unknown|invalid) option|unknown flag: --mksquashfs-args",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ConvertOptions:
    """How Apptainer is used to make SIF files."""

    apptainer: str = "apptainer"
    tmp_dir: Path | None = None
    """Where images are unpacked, best on a local disk; the system's temporary directory by default."""
    cache_dir: Path | None = None
    """Where layers are kept for other images; nothing is kept by default."""
    plain_http_registries: tuple[str, ...] = ()
    """`host:port` of registries without TLS."""
    timeout_seconds: float = 4 * 3600.0
    mksquashfs_zstd: bool | None = None
    """Compress with zstd; by default where Apptainer's version allows to ask for it (1.4)."""
    ask_version: bool = True
    """Ask for that version first; else zstd is tried and, where it is refused, done without."""
    authfile: Path | None = None
    """Credentials as Docker writes them (config.json)."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for Apptainer in addition to the worker's own environment."""


def convert(
    reference: ImageReference,
    destination_tmp: Path,
    *,
    source: Source,
    runner: CommandRunner,
    options: ConvertOptions,
    on_progress: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    digest: str | None = None,
) -> None:
    """Make a SIF of the image at `destination_tmp`; nothing is left there after an error.

    A `digest` pins what is pulled from a registry, so that what was looked up is what is converted.
    """
    zstd = options.mksquashfs_zstd
    if zstd is None:
        zstd = not options.ask_version or supports_zstd(_apptainer_version(runner, options))
    try:
        _build(
            reference, destination_tmp, source, runner, options, on_progress, should_stop, digest, zstd=zstd
        )
    except ConversionFailed as error:
        if not (zstd and options.mksquashfs_zstd is None and _COMPRESSION_REFUSED.search(error.what)):
            raise
        # A mksquashfs that was built without zstd.
        _build(
            reference, destination_tmp, source, runner, options, on_progress, should_stop, digest, zstd=False
        )


def build_argv(
    reference: ImageReference,
    destination: Path,
    *,
    source: Source,
    options: ConvertOptions,
    zstd: bool,
    digest: str | None = None,
) -> tuple[str, ...]:
    """The command line that makes the SIF. Pure."""
    argv = [options.apptainer, "build", "--force"]
    if options.cache_dir is None:
        argv.append("--disable-cache")
    if zstd:
        argv += ["--mksquashfs-args", _FAST_COMPRESSION]
    if options.authfile is not None:
        argv += ["--authfile", str(options.authfile)]
    if source == "docker" and reference.canonical_registry in options.plain_http_registries:
        argv.append("--no-https")
    return (*argv, str(destination), source_uri(reference, source, digest=digest))


def source_uri(reference: ImageReference, source: Source, *, digest: str | None = None) -> str:
    """Where Apptainer finds the image. Pure."""
    if source == "docker-daemon":
        # The engine knows images by the names they were given there, and wants a tag.
        tag = "" if reference.tag or reference.digest else ":latest"
        return f"docker-daemon:{reference}{tag}"
    if digest is not None:
        return f"docker://{reference.canonical_repository}@{digest}"
    return reference.uri


def build_environment(options: ConvertOptions, build_dir: Path) -> dict[str, str]:
    """What Apptainer's environment must say, besides what the worker's own does. Pure."""
    environment = {
        "APPTAINER_TMPDIR": str(build_dir),
        "SINGULARITY_TMPDIR": str(build_dir),
        "TMPDIR": str(build_dir),
    }
    if options.cache_dir is not None:
        environment["APPTAINER_CACHEDIR"] = environment["SINGULARITY_CACHEDIR"] = str(options.cache_dir)
    return {**environment, **options.environment}


def supports_zstd(version_text: str) -> bool:
    """Whether this `apptainer --version` can be told how to compress. Pure."""
    match = _VERSION.match(version_text.strip())
    return match is not None and match[1].lower() == "apptainer" and (int(match[2]), int(match[3])) >= (1, 4)


def conversion_error(reference: ImageReference, output: str) -> ContainerError:
    """What Apptainer's output says went wrong. Pure."""
    for pattern, kind, what in _FAILURES:
        if pattern.search(output):
            return kind(
                f"{what.format(image=reference, registry=reference.canonical_registry)} {_shown(output)}"
            )
    return ConversionFailed(f"Apptainer could not convert {reference}. {_shown(output)}")


# In this order: the first that matches decides. The texts are in tests/recorded/apptainer-*.
_FAILURES: tuple[tuple[re.Pattern[str], type[ContainerError], str], ...] = (
    (
        re.compile(
            r"no space left on device|disk quota exceeded|Write failed because No space", re.IGNORECASE
        ),
        NotEnoughSpace,
        "There is not enough space to convert {image}.",
    ),
    (
        re.compile(
            r"UNAUTHORIZED|DENIED|unauthorized|authentication required|\b40[13] (?:Forbidden|Unauthorized)"
        ),
        RegistryRefused,
        "The registry {registry} does not give {image} to this worker.",
    ),
    (
        re.compile(
            r"MANIFEST_UNKNOWN|NAME_UNKNOWN|manifest unknown|name unknown|\b404 Not Found|No such image",
            re.IGNORECASE,
        ),
        ImageNotFound,
        "The registry {registry} does not have the image {image}.",
    ),
    (
        re.compile(
            r"connection refused|connection reset|no such host|i/o timeout|deadline exceeded|TLS handshake|"
            r"network is unreachable|no route to host|x509:|server gave HTTP response to HTTPS client|unexpected EOF|"
            r"TOOMANYREQUESTS|\b(?:429|50[0234]) [A-Z]|proxyconnect|temporary failure in name resolution",
            re.IGNORECASE,
        ),
        RegistryUnreachable,
        "The registry {registry} could not be reached for {image}.",
    ),
)


def remove_dead_builds(options: ConvertOptions) -> None:
    """Remove what a converter left that was killed in the middle, and end the Apptainer it left running."""
    parent = options.tmp_dir or Path(tempfile.gettempdir())
    for build_dir in parent.glob(f"{BUILD_DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):  # whatever lies there: tidying up must not stop a conversion
            if build_dir.lstat().st_uid != os.geteuid() or build_dir.is_symlink():
                continue  # another user's, in a temporary directory that all share
            owner = read_holder(build_dir / _OWNER_FILE)
            if owner is not None and owner.is_gone():
                _end_processes_that_work_in(build_dir)
                _remove_tree(build_dir)


def _end_processes_that_work_in(build_dir: Path) -> None:
    setting = f"APPTAINER_TMPDIR={build_dir}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or another user's
            if setting in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _build(
    reference: ImageReference,
    destination_tmp: Path,
    source: Source,
    runner: CommandRunner,
    options: ConvertOptions,
    on_progress: Callable[[str], None] | None,
    should_stop: Callable[[], bool] | None,
    digest: str | None,
    *,
    zstd: bool,
) -> None:
    build_dir = _new_build_dir(options)
    try:
        result = runner.stream(
            build_argv(reference, destination_tmp, source=source, options=options, zstd=zstd, digest=digest),
            timeout_seconds=options.timeout_seconds,
            on_line=on_progress or _ignore,
            env={**os.environ, **build_environment(options, build_dir)},
            should_stop=should_stop,
        )
    except CommandTimeout as error:
        _discard(destination_tmp)
        raise ConversionTimeout(
            f"Converting {reference} took more than {options.timeout_seconds:g} s. {_shown(error.stdout)}"
        ) from error
    except CommandStopped as error:
        _discard(destination_tmp)
        raise ConversionStopped(f"Converting {reference} was stopped.") from error
    except CommandNotFound as error:
        raise _missing(error) from error
    except BaseException:
        _discard(destination_tmp)
        raise
    finally:
        _remove_tree(build_dir)
    if result.returncode != 0 or not _has_content(destination_tmp):
        _discard(destination_tmp)
        raise conversion_error(reference, result.stdout)


def _apptainer_version(runner: CommandRunner, options: ConvertOptions) -> str:
    try:
        argv = (options.apptainer, "--version")
        return runner.run(argv, timeout_seconds=_VERSION_TIMEOUT_SECONDS).stdout
    except CommandNotFound as error:
        raise _missing(error) from error
    except CommandTimeout as error:
        raise ConversionTimeout(str(error)) from error


def _missing(error: CommandNotFound) -> ProgramMissing:
    return ProgramMissing(
        str(error),
        remedy="Install Apptainer on the worker's host, or load its module before the worker is started.",
    )


def _new_build_dir(options: ConvertOptions) -> Path:
    try:
        if options.tmp_dir is not None:
            options.tmp_dir.mkdir(parents=True, exist_ok=True)
        if options.cache_dir is not None:
            options.cache_dir.mkdir(parents=True, exist_ok=True)
        build_dir = Path(tempfile.mkdtemp(prefix=BUILD_DIRECTORY_PREFIX, dir=options.tmp_dir))
        write_holder(build_dir / _OWNER_FILE, Holder.this_process("SIF converter"))
    except OSError as error:
        raise StoreNotWritable(
            f"Images cannot be unpacked in {options.tmp_dir or tempfile.gettempdir()}: {error.strerror}.",
            remedy="Set the build directory to one on a local disk that the worker's user may write to.",
        ) from error
    return build_dir


def _remove_tree(directory: Path) -> None:
    # Images hold directories without write permission for their owner.
    for parent, names, _files in os.walk(directory):
        for name in names:
            child = Path(parent, name)
            if not child.is_symlink():
                child.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)


def _has_content(path: Path) -> bool:
    """Whether a SIF, perhaps made on another host, is there: opening asks a network file system anew."""
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END) > 0
    except FileNotFoundError:
        return False


def _discard(path: Path) -> None:
    path.unlink(missing_ok=True)


def _ignore(_line: str) -> None:
    pass


def _shown(output: str) -> str:
    """Apptainer's last lines; the image's own names and addresses only, credentials never stand in them."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    wanted = [line for line in lines if line.startswith(("FATAL", "ERROR", "WARNING"))] or lines
    if not wanted:
        return "Apptainer said nothing."
    text = "\n".join(wanted[-_LAST_LINES:])
    return f'Apptainer said: "{text}".'
