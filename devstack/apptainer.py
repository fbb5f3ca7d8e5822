"""Apptainer: the machine's own, or Debian's newest package unpacked into a private prefix."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import SYSTEM_PATH, run, succeeds
from .errors import DevstackError
from .newer_suites import download, machine_is
from .packages import apt_get, apt_knows

if TYPE_CHECKING:
    from .service import Context

_FUSE = Path("/dev/fuse")
_FUSE_DEVICE = os.makedev(10, 229)
_LIBRARIES = ("libc6", "libseccomp2", "libsqlite3-0")
_BY_HAND = "install it (on Ubuntu from the Apptainer project's PPA) so that `apptainer` is on PATH"


class Apptainer:
    """Not a service: a program that jobs run. Same `install` as the services have."""

    name = "apptainer"

    def __init__(self, context: Context) -> None:
        self._context = context
        self._prefix = context.layout.apptainer

    def install(self) -> None:
        """Make `apptainer` work for the job user, from whatever source this machine has."""
        if self.program() is None:
            if machine_is("debian"):
                with self._context.report.step("apptainer: installed in a private prefix"):
                    self._install_privately()
            elif apt_knows("apptainer"):
                with self._context.report.step("apptainer: installed"):
                    apt_get("install", "--yes", "--no-install-recommends", "apptainer", timeout_seconds=600)
        program = self.program()
        if program is None:
            raise DevstackError(f"apptainer: not in this machine's package source: {_BY_HAND}")
        self._check(program)

    def program(self) -> Path | None:
        """The apptainer that jobs should use: the machine's own, else the private one, else None."""
        found = shutil.which("apptainer", path=SYSTEM_PATH)
        for candidate in (Path(found) if found else None, self._prefix / "bin" / "apptainer"):
            if (
                candidate
                and candidate.exists()
                and succeeds([candidate, "--version"], account=self._context.job_user)
            ):
                return candidate
        return None

    def path_directories(self) -> list[Path]:
        """What to put on PATH for it."""
        program = self.program()
        private = self._prefix / "bin"
        return [private] if program is not None and program.parent == private else []

    def problem(self) -> str | None:
        """What keeps the job user from running containers, with the remedy; None when nothing does."""
        user = self._context.job_user
        if self._has_setuid_part():
            return None
        if not succeeds(["/usr/bin/test", "-r", _FUSE, "-a", "-w", _FUSE], account=user):
            return (
                f"apptainer: {_FUSE} is not accessible for {user}: chmod 0666 {_FUSE} (or pass the device in)"
            )
        if not succeeds(["/usr/bin/unshare", "--user", "--map-root-user", "/bin/true"], account=user):
            return (
                f"apptainer: {user} may not create user namespaces:"
                " set sysctl kernel.unprivileged_userns_clone=1,"
                " on Ubuntu 24.04 kernel.apparmor_restrict_unprivileged_userns=0,"
                " in Docker --security-opt seccomp=unconfined; a chroot never allows it"
            )
        return None

    def _has_setuid_part(self) -> bool:
        """Whether it does by root what takes user namespaces and /dev/fuse otherwise."""
        program = self.program()
        if program is None:
            return False
        try:
            built = dict(line.partition("=")[::2] for line in run([program, "buildcfg"]).splitlines())
            starter = Path(built.get("LIBEXECDIR", "")) / "apptainer" / "bin" / "starter-suid"
            return bool(starter.stat().st_mode & stat.S_ISUID)
        except (DevstackError, OSError):
            return False

    def _check(self, program: Path) -> None:
        """Open /dev/fuse to everyone, as udev does where it runs, then look for real obstacles."""
        fixed = ""
        everyone = 0o666
        try:
            if not _FUSE.exists():
                os.mknod(_FUSE, stat.S_IFCHR | everyone, _FUSE_DEVICE)
                fixed = "made"
            if _FUSE.stat().st_mode & everyone != everyone:
                _FUSE.chmod(everyone)
                fixed = fixed or "opened to all users (mode 0666), as udev does"
        except OSError as error:
            self._context.report.line(f"apptainer: {_FUSE} cannot be made usable: {error.strerror}")
        if fixed:
            self._context.report.line(f"apptainer: {_FUSE} {fixed}")
        problem = self.problem()
        if problem:
            self._context.report.line(problem)
            self._context.state.notes["apptainer"] = problem.partition(": ")[2]
        else:
            version = run([program, "--version"], account=self._context.job_user).split()[-1]
            self._context.state.notes["apptainer"] = f"{version} at {program}"

    def _install_privately(self) -> None:
        """Unpack apptainer from sid with the libraries it needs; the system's own are not touched.

        Its programs get the private loader and an RPATH. RUNPATH would not do: libraries do not inherit it.
        """
        work = self._context.layout.below("opt", "apptainer-build")
        shutil.rmtree(work, ignore_errors=True)
        (work / "x").mkdir(parents=True)
        wanted = [
            "apptainer",
            *(f"{library}/trixie" for library in _LIBRARIES),
        ]  # apt would take sid's otherwise
        download(self._context.layout, wanted, work / "packages")
        for package in sorted((work / "packages").glob("*.deb")):
            run(["/usr/bin/dpkg-deb", "--extract", package, work / "x" / package.name.partition("_")[0]])
        self._assemble(work / "x")
        shutil.rmtree(work)

    def _assemble(self, unpacked: Path) -> None:
        prefix = self._prefix
        shutil.rmtree(prefix, ignore_errors=True)
        shutil.copytree(unpacked / "apptainer" / "usr", prefix, symlinks=True)
        shutil.copytree(unpacked / "apptainer" / "etc", prefix / "etc", symlinks=True)
        for library in _LIBRARIES:
            for file in (unpacked / library / "usr" / "lib").glob("*-linux-gnu*/*.so*"):
                shutil.copy2(file, prefix / "lib" / file.name, follow_symlinks=False)
        loader = next((prefix / "lib").glob("ld-linux*.so.*"))
        for program in (prefix / "bin" / "apptainer", *prefix.glob("lib/*-linux-gnu*/apptainer/bin/starter")):
            argv = [
                "/usr/bin/patchelf",
                "--set-interpreter",
                loader,
                "--force-rpath",
                "--set-rpath",
                prefix / "lib",
                program,
            ]
            run(argv)
        (prefix / "lib" / "etc").symlink_to(prefix / "etc")
        (prefix / "lib" / "var/lib/apptainer/mnt/session").mkdir(parents=True)
