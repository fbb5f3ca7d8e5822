"""One image → one SIF file, with Apptainer.

An image is converted with `apptainer build`; a SIF that lies in a registry or library is fetched with `apptainer pull`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from girder_worker_singularity.clock import Clock, SystemClock
from girder_worker_singularity.command_runner import (
    CommandNotFound,
    CommandRunner,
    CommandStopped,
    CommandTimeout,
)
from girder_worker_singularity.errors import (
    ConversionFailed,
    ConversionStopped,
    ConversionTimeout,
    NotEnoughSpace,
    ProgramMissing,
    SignatureInvalid,
    StoreNotWritable,
)
from girder_worker_singularity.holder import Holder, read_holder, write_holder
from girder_worker_singularity.sif.conversion_errors import conversion_error, shown
from girder_worker_singularity.sif.growth import Growth, Places
from girder_worker_singularity.source.credentials import ACCOUNT_VARIABLES, authfile_text, without_secrets
from girder_worker_singularity.source.library import is_plain, library_server, remote_file_text
from girder_worker_singularity.source.origin import REMOTE, ExpectedBytes, Origin
from girder_worker_singularity.tree import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from girder_worker_singularity.image.reference import ImageReference
    from girder_worker_singularity.source.credentials import Credentials

BUILD_DIRECTORY_PREFIX = "girder-sif-"
FULL = (errno.ENOSPC, errno.EDQUOT)
_OWNER_FILE = "owner.json"
_AUTH_FILE = "auth.json"
_REMOTE_DIRECTORY = "remote"
_VERSION = re.compile(r"^(apptainer|singularity|singularity-ce)\s+version\s+(\d+)\.(\d+)", re.IGNORECASE)
_VERSION_TIMEOUT_SECONDS = 60.0
_VERIFY_TIMEOUT_SECONDS = 1800.0  # it reads the whole file
_ALIASES = ("JARVICE_DOCKER_USERNAME", "JARVICE_DOCKER_PASSWORD")
"""Of the worker's own settings; no program needs them."""
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
    library: str = ""
    """URL of the library that `library://` means where it names no host; empty for the user's own `apptainer remote`."""
    authfile: Path | None = None
    """Credentials as Docker writes them (config.json), for registries that have no other."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for Apptainer in addition to the worker's own environment."""


@dataclass(frozen=True)
class Account:
    """With what a registry is asked, and what must be in no text because of it."""

    credentials: Credentials | None = None
    secret_words: tuple[str, ...] = field(default=(), repr=False)


def convert(
    reference: ImageReference,
    destination_tmp: Path,
    *,
    origin: Origin,
    runner: CommandRunner,
    options: ConvertOptions,
    account: Account | None = None,
    on_progress: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    expected: Callable[[], ExpectedBytes | None] | None = None,
    is_elsewhere: bool = False,
    clock: Clock | None = None,
) -> None:
    """Make a SIF of the image at `destination_tmp`; nothing is left there after an error.

    The credentials reach Apptainer in a file of mode 0600 that goes with the build directory. Of a runner that
    `is_elsewhere` only the growing SIF is seen.
    """
    zstd = options.mksquashfs_zstd
    if zstd is None:
        zstd = not origin.holds_sif and (
            not options.ask_version or supports_zstd(_apptainer_version(runner, options))
        )
    one = _Conversion(
        reference,
        destination_tmp,
        origin,
        runner,
        options,
        account or Account(),
        on_progress or _ignore,
        should_stop or _never,
        expected or _unknown,
        is_elsewhere,
        clock or SystemClock(),
    )
    try:
        one.run(zstd=zstd)
    except ConversionFailed as error:
        if not (zstd and options.mksquashfs_zstd is None and _COMPRESSION_REFUSED.search(error.what)):
            raise
        one.run(zstd=False)  # a mksquashfs that was built without zstd


def build_argv(
    origin: Origin,
    destination: Path,
    *,
    options: ConvertOptions,
    zstd: bool,
    authfile: Path | None = None,
) -> tuple[str, ...]:
    """The command line that makes the SIF. Pure."""
    argv = [options.apptainer, "pull" if origin.holds_sif else "build", "--force"]
    if options.cache_dir is None:
        argv.append("--disable-cache")
    if zstd and not origin.holds_sif:
        argv += ["--mksquashfs-args", _FAST_COMPRESSION]
    if origin.source in REMOTE:
        authfile = authfile or options.authfile
        if authfile is not None:
            argv += ["--authfile", str(authfile)]
        if is_plain(origin.registry, options.plain_http_registries):
            argv.append("--no-https")
    if origin.source == "library" and options.library and not origin.registry:
        argv += ["--library", options.library]
    return (*argv, str(destination), origin.uri)


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
                remove_tree(build_dir)


def _end_processes_that_work_in(build_dir: Path) -> None:
    setting = f"APPTAINER_TMPDIR={build_dir}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or another user's
            if setting in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


@dataclass(frozen=True)
class _Conversion:
    reference: ImageReference
    destination_tmp: Path
    origin: Origin
    runner: CommandRunner
    options: ConvertOptions
    account: Account
    on_progress: Callable[[str], None]
    should_stop: Callable[[], bool]
    expected: Callable[[], ExpectedBytes | None]
    is_elsewhere: bool
    clock: Clock

    def run(self, *, zstd: bool) -> None:
        """Makes the SIF in a build directory of its own."""
        options, destination_tmp = self.options, self.destination_tmp
        build_dir = _new_build_dir(options)
        try:
            authfile = self._write_authfile(build_dir)
            growth = self._growth(build_dir)
            remote = self._write_remote_file(build_dir)
            result = self.runner.stream(
                build_argv(self.origin, destination_tmp, options=options, zstd=zstd, authfile=authfile),
                timeout_seconds=options.timeout_seconds,
                on_line=lambda line: self._hear(line, growth),
                env={**self._environment(build_dir), **remote},
                should_stop=lambda: self._looks_stopped(growth),
            )
        except CommandTimeout as error:
            _discard(destination_tmp)
            raise ConversionTimeout(
                f"Converting {self.reference} took more than {options.timeout_seconds:g} s. "
                f"{shown(self._clean(error.stdout))}"
            ) from None  # which holds all of the output
        except CommandStopped:
            _discard(destination_tmp)
            raise ConversionStopped(f"Converting {self.reference} was stopped.") from None
        except CommandNotFound as error:
            raise _missing(error) from error
        except BaseException:
            _discard(destination_tmp)
            raise
        finally:
            remove_tree(build_dir)
        if result.returncode != 0 or not _has_content(destination_tmp):
            _discard(destination_tmp)
            registry = self.origin.registry or self._library_server
            raise conversion_error(self.reference, self._clean(result.stdout), registry=registry)

    def _growth(self, build_dir: Path) -> Growth:
        places = Places(
            self.destination_tmp, None if self.is_elsewhere else build_dir, self.options.cache_dir
        )
        return Growth(places, self.on_progress, self.clock, expected=self.expected)

    def _hear(self, line: str, growth: Growth) -> None:
        growth.hear(line)
        self.on_progress(self._clean(line))

    def _looks_stopped(self, growth: Growth) -> bool:
        # Runners ask this several times a second: a clock for looks at the files that needs no thread.
        growth.look()
        return self.should_stop()

    def _write_authfile(self, build_dir: Path) -> Path | None:
        if self.account.credentials is None:
            return None
        path = build_dir / _AUTH_FILE
        _write_private(path, authfile_text(self.origin.registry, self.account.credentials))
        return path

    def _write_remote_file(self, build_dir: Path) -> dict[str, str]:
        """What the environment must say so that Apptainer speaks to this library."""
        if not self._library_server:
            return {}
        directory = build_dir / _REMOTE_DIRECTORY
        _write_private(directory / "remote.yaml", remote_file_text(self._library_server))
        return {"APPTAINER_CONFIGDIR": str(directory)}

    @property
    def _library_server(self) -> str:
        return library_server(self.origin, self.options.library, self.options.plain_http_registries)

    def _environment(self, build_dir: Path) -> dict[str, str]:
        environment = {**os.environ, **build_environment(self.options, build_dir)}
        if self.account.credentials is not None or self.origin.source not in REMOTE:
            for name in ACCOUNT_VARIABLES:  # which would win over the file
                environment.pop(name, None)
        for name in _ALIASES:
            environment.pop(name, None)
        return environment

    def _clean(self, text: str) -> str:
        return without_secrets(text, self.account.secret_words)


def verify_signature(
    reference: ImageReference, path: Path, *, runner: CommandRunner, options: ConvertOptions
) -> None:
    """Nothing, or SignatureInvalid if the SIF is not signed by a key in the keyring of the worker's user.

    Only keys that are here count: on a key server anybody can put one.
    """
    try:
        argv = (options.apptainer, "verify", "--local", str(path))
        environment = {**os.environ, **options.environment}
        result = runner.run(argv, timeout_seconds=_VERIFY_TIMEOUT_SECONDS, env=environment)
    except CommandNotFound as error:
        raise _missing(error) from error
    except CommandTimeout as error:
        raise ConversionTimeout(str(error)) from error
    if result.returncode != 0:
        raise SignatureInvalid(
            f"The signature of the SIF of {reference} is not accepted. {shown(result.stdout + result.stderr)}"
        )


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
        try:
            write_holder(build_dir / _OWNER_FILE, Holder.this_process("SIF converter"))
        except OSError:
            remove_tree(build_dir)
            raise
    except OSError as error:
        parent = options.tmp_dir or tempfile.gettempdir()
        if error.errno in FULL:
            raise NotEnoughSpace(f"Images cannot be unpacked in {parent}: {error.strerror}.") from error
        raise StoreNotWritable(
            f"Images cannot be unpacked in {parent}: {error.strerror}.",
            remedy="Set the build directory to one on a local disk that the worker's user may write to.",
        ) from error
    return build_dir


def _write_private(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        kind = NotEnoughSpace if error.errno in FULL else StoreNotWritable
        raise kind(f"{path} cannot be written: {error.strerror}.") from error


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


def _unknown() -> ExpectedBytes | None:
    return None


def _never() -> bool:
    return False
