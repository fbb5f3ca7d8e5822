"""debian:bookworm-slim and debian:trixie-slim, bootstrapped from the package source of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.newer_suites import debian_origin

if TYPE_CHECKING:
    from tests.support.container_host import ContainerHost

SUITES = ("bookworm", "trixie")
RECIPE_LABEL = "org.girder-worker-slurm.stand-in"
_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_ALL_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_FAST_DIRECTORY = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
_BYTES_NEEDED = 2 * 10**9
# Of what apt is told on this machine, what a container has to know as well to reach the package sources.
_APT_OPTIONS = re.compile(r'^Acquire::(Check-Valid-Until|Check-Date|https?::Proxy) "[^"]+";$', re.MULTILINE)
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")
# As the official images: no manuals and translations, no waiting for the disk.
_DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
_APT_KEEPS_NOTHING = """\
APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
"""


@dataclass(frozen=True)
class Recipe:
    """All that decides what is in the image of one suite."""

    suite: str
    sources: str
    files: dict[str, str]
    authorities: dict[str, str]

    @classmethod
    def of_this_machine(cls, suite: str) -> Recipe:
        """How this machine would make it."""
        found = sorted(_AUTHORITIES.glob("*.crt"))
        files = {
            "/etc/apt/apt.conf.d/80-slim": _APT_KEEPS_NOTHING,
            "/etc/apt/apt.conf.d/90-machine": "\n".join(_machine_s_apt_options()) + "\n",
            "/etc/dpkg/dpkg.cfg.d/80-slim": "\n".join(_DPKG_OPTIONS) + "\n",
            "/etc/pip.conf": _pip_conf(with_authorities=bool(found)),
        }
        sources = debian_origin().replace("@SUITE@", suite)
        return cls(suite, sources, files, {path.name: path.read_text(encoding="utf-8") for path in found})

    @property
    def image(self) -> str:
        """The official name."""
        return f"debian:{self.suite}-slim"

    @property
    def digest(self) -> str:
        """The same for the same image, and for no other."""
        text = json.dumps([self.suite, self.sources, self.files, self.authorities, _APT_KEEPS_NOTHING])
        return hashlib.sha256((text + Path(__file__).read_text(encoding="utf-8")).encode()).hexdigest()[:16]


def make(recipe: Recipe, engine: ContainerHost) -> None:
    """Gives the engine this image, in half a minute or so."""
    roomy = _FAST_DIRECTORY.is_dir() and shutil.disk_usage(_FAST_DIRECTORY).free > _BYTES_NEEDED
    with tempfile.TemporaryDirectory(
        prefix="stand-in-", dir=_FAST_DIRECTORY if roomy else engine.directory
    ) as name:
        work = Path(name)
        work.chmod(0o755)  # mmdebstrap's apt works as another user
        tree = work / "tree"
        for path, text in recipe.files.items():
            target = tree / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        sources = tree / "etc/apt/sources.list.d/debian.sources"
        sources.parent.mkdir()
        sources.write_text(recipe.sources, encoding="utf-8")
        for certificate, text in recipe.authorities.items():
            target = tree / str(_AUTHORITIES).lstrip("/") / certificate
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        archive = work / "image.tar"
        _run(_mmdebstrap(recipe, tree, sources, archive), {**os.environ, "TMPDIR": str(work)})
        _run(
            ["docker", "import", "--change", 'CMD ["bash"]', "--change", f"LABEL {RECIPE_LABEL}={recipe.digest}",
             str(archive), recipe.image],
            engine.environment(),
        )  # fmt: skip


def _mmdebstrap(recipe: Recipe, tree: Path, sources: Path, archive: Path) -> list[str]:
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=tar"]
    argv += [
        f"--aptopt={option}" for option in ("Acquire::Check-Valid-Until false", 'Acquire::Languages "none"')
    ]
    argv += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
    if recipe.authorities:
        argv += ["--include=ca-certificates"]
    argv += [f'--customize-hook=tar -C {tree} -cf - . | tar -C "$1" --no-same-owner -xf -']
    # Told above where none are kept, apt would not find these to clean up.
    argv += ['--customize-hook=rm -f "$1"/var/cache/apt/*.bin']
    argv += ['--customize-hook=rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/0000*']
    argv += [
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap'
    ]
    if recipe.authorities:
        argv += ['--customize-hook=chroot "$1" update-ca-certificates']
    return [*argv, recipe.suite, str(archive), str(sources)]


def _machine_s_apt_options() -> list[str]:
    shown = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    return [match[0] for match in _APT_OPTIONS.finditer(shown)]


def _pip_conf(*, with_authorities: bool) -> str:
    argv = [sys.executable, "-m", "pip", "config", "list"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    found: dict[str, str] = {}
    for line in shown.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        value = value.strip("'")
        if (
            option in _PIP_OPTIONS and "file:" not in value
        ):  # a directory of this machine is not in the container
            found.setdefault(option, value)
    if with_authorities:
        found["cert"] = _ALL_AUTHORITIES
    return "[global]\n" + "".join(f"{option} = {value}\n" for option, value in sorted(found.items()))


def _run(argv: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{argv[0]}: {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
