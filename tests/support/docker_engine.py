"""A Docker engine of a test's own, which leaves the machine's engine, network and mounts alone. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import docker
import docker.errors

from tests.support.images import build_oci_layout
from tests.support.self_undoing import SelfUndoing

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence

# Not the caller's PATH: that may lack sbin, or have another engine's programs in front.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS_TO_START = 30
# An empty /run hides the containerd of the machine, which dockerd would otherwise use. Where systemd answers
# for names, its file with their servers stays.
_START = """
set -e
servers=
if [ -r /run/systemd/resolve/resolv.conf ]; then servers=$(cat /run/systemd/resolve/resolv.conf); fi
mount -t tmpfs tmpfs /run
if [ -n "$servers" ]; then
  mkdir -p /run/systemd/resolve
  printf '%s\\n' "$servers" | tee /run/systemd/resolve/stub-resolv.conf > /run/systemd/resolve/resolv.conf
fi
exec dockerd "$@"
"""


@dataclass
class DockerEngine(SelfUndoing):
    """A dockerd below one new directory, whose socket one group may use. Use as a context manager."""

    parent: Path
    group: str
    directory: Path = Path()
    process: subprocess.Popen[bytes] | None = None
    # Its containers have no network, and nothing is built in it.
    unshared: ClassVar[Sequence[str]] = ("--net",)
    options: Sequence[str] = (
        *("--storage-driver=vfs", "--bridge=none"),
        *("--iptables=false", "--ip6tables=false", "--ip-forward=false"),
    )

    @property
    def host(self) -> str:
        """What DOCKER_HOST says."""
        return f"unix://{self.directory}/docker.sock"

    def _make(self, undo: contextlib.ExitStack) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="engine-", dir=self.parent))
        undo.callback(shutil.rmtree, self.directory)
        self.directory.chmod(0o711)
        undo.callback(self.kill)
        self._start()

    def load(self, name: str, text: str) -> str:
        """Gives the engine an image whose program says this text; the answer is the image's name."""
        return self.load_image(
            name,
            {"/opt/my app/say.sh": f'#!/bin/sh\necho "{text} $VALUE $PWD $*"\n'},
            entrypoint=["./say.sh"],
            command=["from", "the image"],
            workdir="/opt/my app",
            env={"VALUE": "a b"},
            labels={"note": "y z"},
        )

    def load_image(self, name: str, files: Mapping[str, str | bytes], **config: Any) -> str:
        """Gives the engine an image with these files, configured as `build_oci_layout` takes it; the answer is its name."""
        with tempfile.TemporaryDirectory(prefix="test-image-") as directory:
            layout = build_oci_layout(Path(directory) / "oci", files, **config)
            archive = Path(directory) / "image.tar"
            # Not straight to the engine: Debian 12's skopeo speaks an API that newer engines refuse.
            subprocess.run(
                ["skopeo", "copy", "--insecure-policy", "--quiet", f"oci:{layout}:latest",
                 f"docker-archive:{archive}:{name}"],
                check=True, timeout=60,
            )  # fmt: skip
            client = docker.DockerClient(self.host, timeout=30)
            try:
                with archive.open("rb") as file:
                    client.images.load(file)
            finally:
                client.close()
        return name

    def run(self, image: str, arguments: Sequence[str], **options: Any) -> tuple[int, bytes]:
        """Exit code and standard output of a container, with docker-py's options."""
        client = docker.DockerClient(self.host, timeout=60)
        try:
            container = client.containers.create(image, list(arguments), network_mode="none", **options)
            try:
                container.start()
                code = container.wait(timeout=60)["StatusCode"]
                return code, container.logs(stdout=True, stderr=False)
            finally:
                container.remove(force=True)
        finally:
            client.close()

    def hang(self) -> None:
        """Connections are accepted from now on, but never answered."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `hang`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all of it; the socket stays."""
        if self.process is None:
            return
        # It is the first process of a PID namespace: everything in there dies with it, mounts and network too.
        self._signal(signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def _signal(self, what: signal.Signals) -> None:
        """To the dockerd, or to what is about to start it."""
        assert self.process is not None
        if self.process.poll() is None:
            pid = self.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            os.kill(int(children[0]) if children else pid, what)

    def _start(self) -> None:
        config = self.directory / "daemon.json"  # not the machine's /etc/docker/daemon.json
        config.write_text("{}")
        log = self.directory / "log"
        argv = [
            # Ends with the process of the tests, even when that is killed.
            "setpriv", "--pdeathsig=KILL",
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *self.unshared,
            "sh", "-c", _START, "dockerd",
            f"--config-file={config}",
            f"--host={self.host}",
            f"--group={self.group}",
            f"--data-root={self.directory}/data",
            f"--exec-root={self.directory}/exec",
            f"--pidfile={self.directory}/dockerd.pid",
            *self.options,
        ]  # fmt: skip
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv, env={"PATH": _PATH}, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        until = time.monotonic() + _SECONDS_TO_START
        while not self._answers():
            said = log.read_text(errors="replace")[-3000:]
            assert self.process.poll() is None, f"dockerd ended: {said}"
            assert time.monotonic() < until, f"dockerd does not answer: {said}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            client = docker.DockerClient(self.host, timeout=5)
        except docker.errors.DockerException:
            return False
        try:
            return bool(client.ping())
        except (docker.errors.DockerException, OSError):
            return False
        finally:
            client.close()
