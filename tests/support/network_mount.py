"""Directories on real network file systems whose mounts see the changes of other hosts late. Needs root.

`NetworkMounts` is one directory on two "hosts", over GlusterFS on loopback with caches as NFS has them: a mount each,
whose programs have a host name of their own. What a file holds is fetched when it is opened, but whether it exists and
when it was changed is answered from memory.

`WorkersMount` is a directory that compute nodes have on their disk and the worker over sshfs, under the same path. What
is in a directory, too, is answered from memory there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.self_undoing import SelfUndoing
from tests.support.services import end, free_port, listens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

    from tests.support.stack import Stack

REPOSITORY = Path(__file__).parents[2]
_SECONDS_TO_START = 20
_SERVER = """volume disk
  type storage/posix
  option directory {directory}/disk
end-volume
volume locks
  type features/locks
  subvolumes disk
end-volume
volume server
  type protocol/server
  option transport-type socket
  option transport.socket.bind-address 127.0.0.1
  option transport.socket.listen-port {port}
  option auth.addr.locks.allow 127.0.0.1
  subvolumes locks
end-volume
"""
_CLIENT = """volume remote
  type protocol/client
  option transport-type socket
  option remote-host 127.0.0.1
  option remote-port {port}
  option remote-subvolume locks
end-volume
volume write-behind
  type performance/write-behind
  subvolumes remote
end-volume
"""
#: As NFS: contents are fetched at `open`; names and times are remembered, longer than a test lasts.
LIKE_NFS = ("--direct-io-mode=enable", "--attribute-timeout=120", "--entry-timeout=120")
#: Contents that were once read are never fetched again; names and times after a second.
STALE_CONTENTS = ("--attribute-timeout=1", "--entry-timeout=1")

_SFTP_SERVER = "/usr/lib/openssh/sftp-server"


@dataclass
class NetworkMounts:
    """Two mounts of one new directory below `directory`, which the stack's user owns. Use as a context manager."""

    stack: Stack
    directory: Path
    options: tuple[str, ...] = LIKE_NFS
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> NetworkMounts:  # noqa: PYI034 - no subclass of it is wanted
        self.directory.mkdir(mode=0o755)
        (self.directory / "disk").mkdir()
        port = free_port()
        try:
            for name, text in (("server", _SERVER), ("client", _CLIENT)):
                (self.directory / f"{name}.vol").write_text(
                    text.format(directory=self.directory, port=port), encoding="utf-8"
                )
            self._start("server", "glusterfsd")
            self._wait_for(lambda: listens(port))
            for number in (1, 2):
                mount = self._mount(number)
                mount.mkdir()
                self._start("client", "glusterfs", *self.options, "--fuse-mountopts=allow_other", str(mount))
                self._wait_for(mount.is_mount)
            shutil.chown(self._mount(1), self.stack.user, self.stack.user)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in (1, 2):
            subprocess.run(["umount", "--lazy", self._mount(number)], capture_output=True, timeout=30)
        for process in reversed(self._processes):
            end(process, seconds=10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, number: int, name: str) -> Path:
        """This name in the directory, as the host of this number sees it."""
        return self._mount(number) / name

    def begin(self, number: int, argv: Sequence[str | Path]) -> subprocess.Popen[str]:
        """A program of the stack's user on the host of this number; it finds this project's modules."""
        words = self.stack.as_user([str(word) for word in argv])
        return subprocess.Popen(
            ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host{number}", *words],
            env={**self.stack.user_environment(), "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, number: int, argv: Sequence[str | Path]) -> str:
        """What such a program printed; it has to succeed."""
        return self.outcome(self.begin(number, argv))

    @staticmethod
    def outcome(process: subprocess.Popen[str]) -> str:
        """What it printed until its end, which has to be a success."""
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        return out

    def _mount(self, number: int) -> Path:
        return self.directory / f"host{number}"

    def _start(self, kind: str, program: str, *more: str) -> None:
        log = self.directory / f"{len(self._processes)}.log"
        argv = [program, "--no-daemon", f"--volfile={self.directory}/{kind}.vol", f"--log-file={log}", *more]
        self._processes.append(
            subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment())
        )

    def _wait_for(self, condition) -> None:
        until = time.monotonic() + _SECONDS_TO_START
        while not condition():
            if time.monotonic() > until or self._processes[-1].poll() is not None:
                logs = "".join(log.read_text() for log in self.directory.glob("*.log"))
                raise AssertionError(f"GlusterFS does not come up:\n{logs}")
            time.sleep(0.05)


def _environment() -> dict[str, str]:
    # Not the caller's PATH: that may lack sbin.
    return {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass
class WorkersMount(SelfUndoing):
    """A new directory of the stack's user, which programs with the words of `enter` before them have over sshfs.

    All others, and so Slurm's nodes, have the disk. Its `workers/` is a local directory for these programs, since sshfs
    shows two names of one file as two files, on which no lease can be taken. Use as a context manager.
    """

    stack: Stack
    directory: Path
    #: Names, attributes and listings of directories: up to so late.
    stale_seconds: int = 30
    _client: subprocess.Popen[bytes] | None = None

    def _make(self, undo: ExitStack) -> None:
        for path in (self.directory, self._leases, self._empty):
            undo.callback(shutil.rmtree, path, ignore_errors=True)
        for path in (self.directory, self.directory / "workers", self._leases, self._empty):
            path.mkdir(mode=0o700)
            shutil.chown(path, self.stack.user, self.stack.user)
        client, server = socket.socketpair()
        # `passive`: what is said between both goes through here instead of through ssh.
        options = f"passive,allow_other,default_permissions,dcache_timeout={self.stale_seconds}"
        argv = ["sshfs", "-f", "-o", options, f"nodes:{self.directory}", self.directory]
        with client, server:
            process = subprocess.Popen(
                self.stack.as_user([_SFTP_SERVER]), stdin=server, stdout=server, stderr=subprocess.DEVNULL
            )
            undo.callback(end, process, seconds=10)
            # The mount lies over the directory in a namespace of its own, and ends with it.
            self._client = subprocess.Popen(
                ["unshare", "--mount", *argv], stdin=client, stdout=client, stderr=subprocess.PIPE
            )
            undo.callback(end, self._client, seconds=10)
        self._wait_for_mount()
        self._run("mount", "--bind", self._leases, self.directory / "workers")

    @property
    def enter(self) -> tuple[str, ...]:
        """What stands before the command line of a program that is to have the mount."""
        assert self._client is not None
        return ("nsenter", f"--mount=/proc/{self._client.pid}/ns/mnt")

    @contextmanager
    def hidden(self, name: str) -> Iterator[None]:
        """For as long as the block lasts an empty directory is seen over the mount instead of this one."""
        self._run("mount", "--bind", self._empty, self.directory / name)
        try:
            yield
        finally:
            self._run("umount", "--lazy", self.directory / name)

    def listing(self, name: str) -> list[str]:
        """What a program lists over the mount."""
        return self._run("ls", "--almost-all", self.directory / name).split()

    @property
    def _empty(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}-empty")

    @property
    def _leases(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}-leases")

    def _wait_for_mount(self) -> None:
        assert self._client is not None
        until = time.monotonic() + _SECONDS_TO_START
        while f" {self.directory} " not in self._mounts():
            if time.monotonic() > until or self._client.poll() is not None:
                self._client.kill()
                msg = f"sshfs does not come up: {self._client.communicate(timeout=10)[1].decode()}"
                raise AssertionError(msg)
            time.sleep(0.05)

    def _run(self, *argv: str | Path) -> str:
        words = [*self.enter, *argv]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout

    def _mounts(self) -> str:
        assert self._client is not None
        return Path(f"/proc/{self._client.pid}/mountinfo").read_text(encoding="utf-8")
