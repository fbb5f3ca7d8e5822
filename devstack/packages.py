"""Installs what comes from the machine's own package source, without letting any service start."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import run, succeeds
from .errors import CommandFailedError, DevstackError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .report import Report

# Each entry is a choice of names: releases call some packages differently.
_PACKAGES: tuple[tuple[str, ...], ...] = (
    *((name,) for name in ("munge", "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins")),
    *((name,) for name in ("rabbitmq-server", "redis-server", "docker-registry")),
    *((name,) for name in ("umoci", "skopeo", "busybox-static", "squashfs-tools", "patchelf", "mmdebstrap")),
    *((name,) for name in ("uidmap", "squashfuse", "fuse-overlayfs", "fuse2fs", "fuse3")),
    *((name,) for name in ("iproute2", "iptables", "procps")),  # tests look at processes and the network
    ("glusterfs-client",),  # tests put a store on a network file system
    *((name,) for name in ("sshfs", "openssh-sftp-server")),  # and the worker's jobs root
    *((name,) for name in ("slurmdbd", "mariadb-server")),  # tests start a cluster with accounts
    ("sudo",),  # tests run jobs as several Unix users
    ("siftool",),  # tests make SIFs with SingularityCE's own library
    *((name,) for name in ("python3-venv", "ca-certificates", "openssl", "shellcheck")),
    ("systemd",),  # tests ask systemd-analyze about the units; it runs nothing here
    ("docker.io", "docker-ce", "moby-engine"),  # a test starts an engine of its own
    ("containerd", "containerd.io"),
    ("libcurl4t64", "libcurl4"),  # for mongod
)
_PACKAGE_OF_UNIT = {
    **{name: name for name in ("munge", "slurmctld", "slurmd", "rabbitmq-server", "redis-server")},
    **{name: name for name in ("docker-registry", "containerd", "slurmdbd")},
    "mariadb": "mariadb-server",
    "docker.socket": "docker.io",
    "docker": "docker.io",
}
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\n# Temporary, by devstack: packages being installed start nothing.\nexit 101\n"


def install(report: Report) -> None:
    """Install the packages that are missing."""
    missing = _missing()
    if not missing:
        return
    if not Path("/usr/bin/apt-get").exists():
        raise DevstackError(
            "this machine has no apt-get: the stack installs on Debian 12/13 and Ubuntu 22.04/24.04 only"
        )
    with (
        report.step(f"packages: {len(missing)} installed"),
        _services_stay_off([choice[0] for choice in missing]),
    ):
        apt_get("update", timeout_seconds=300)
        names = [_available(choice) for choice in missing]
        # --no-remove: a container engine from elsewhere (containerd.io) would otherwise make way for Debian's.
        apt_get("install", "--yes", "--no-remove", "--no-install-recommends", *names, timeout_seconds=1500)
    still = _missing()
    if still:
        raise DevstackError(
            f"packages: not installed: {', '.join(choice[0] for choice in still)}: see `apt-get -f install`"
        )


def apt_get(*arguments: str, timeout_seconds: float, cwd: Path | None = None) -> None:
    """Run apt-get without questions."""
    environment = {
        **os.environ,
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_SUSPEND": "1",  # Ubuntu would otherwise restart services of the machine
        "RUNLEVEL": "1",
        "LC_ALL": "C.UTF-8",
    }
    options = ["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold"]
    try:
        run(
            ["/usr/bin/apt-get", *options, *arguments],
            timeout_seconds=timeout_seconds,
            environment=environment,
            cwd=cwd,
        )
    except CommandFailedError as error:
        raise DevstackError(f"packages: check the machine's package sources: {error}") from error


def apt_knows(package: str) -> bool:
    """Whether the machine's package source has a version to install."""
    try:
        text = run(["/usr/bin/apt-cache", "policy", package], environment={**os.environ, "LC_ALL": "C"})
    except CommandFailedError:
        return False
    return "Candidate:" in text and "Candidate: (none)" not in text


def _missing() -> list[tuple[str, ...]]:
    names = [name for choice in _PACKAGES for name in choice]
    argv = ["/usr/bin/dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n", "*"]
    try:
        lines = run(argv).splitlines()
    except CommandFailedError:
        lines = []
    installed = {line.split()[0] for line in lines if line.endswith(" installed")} & set(names)
    return [choice for choice in _PACKAGES if not installed.intersection(choice)]


def _available(choice: Sequence[str]) -> str:
    for name in choice:
        if apt_knows(name):
            return name
    raise DevstackError(
        f"packages: {choice[0]} is in no package source of this machine:"
        " add Debian's `main` (or Ubuntu's `universe`)"
    )


@contextmanager
def _services_stay_off(packages: Sequence[str]) -> Iterator[None]:
    """While the block runs, no package may start a service; a policy of the machine's own is respected."""
    ours = not _POLICY.exists() or _POLICY.read_text(encoding="utf-8", errors="replace") == _POLICY_TEXT
    if ours:
        _POLICY.write_text(_POLICY_TEXT, encoding="ascii")
        _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)
    if Path("/run/systemd/system").is_dir():
        # Packages enable their service for the next boot; those that came with us are not wanted there.
        for unit, package in _PACKAGE_OF_UNIT.items():
            if package in packages:
                with suppress(CommandFailedError):
                    succeeds(["/usr/bin/systemctl", "disable", "--quiet", unit])
