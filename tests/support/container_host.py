"""A Docker engine as a machine with Docker has it: networks, builds, published ports. For tests of docker-compose.yaml.

Its images stay from session to session. It works in the machine's own network, because what is published has to
be found there; at the end that network is as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

import docker
import psutil

from tests.support.docker_engine import DockerEngine

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Sequence

# Engines share chains of the firewall and the name docker0: only one at a time.
_LOCK = Path("/run/lock/girder-slurm-test-engine")
_SECONDS_FOR_OTHERS = 900
_CGROUPS = Path("/sys/fs/cgroup")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_TABLES = ("nat", "filter")


@dataclass
class ContainerHost(DockerEngine):
    """A dockerd whose data lie in `parent` and stay there. `compose` is the program of Docker's compose, version 2."""

    group: str = "root"
    compose: Path = Path()
    unshared: ClassVar[Sequence[str]] = ()
    options: Sequence[str] = field(default=(), init=False)

    def _make(self, undo: contextlib.ExitStack) -> None:
        self.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.directory = self.parent
        undo.enter_context(_only_engine())
        undo.callback(self._remove_what_ran)
        undo.callback(self._undo_network)
        self._undo_network()  # of a session that was killed
        _assert_no_other_engine()
        self._note_network()
        self.options = (f"--cgroup-parent=/{self._cgroup}",)
        self._link_compose()
        undo.callback(self.kill)
        self._start()
        self.clear()
        undo.callback(self._clear_at_the_end)

    def environment(self) -> dict[str, str]:
        """What `docker` and `docker compose` need to speak to this engine, and nothing of the caller's."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": str(self._docker_config),
            "LC_ALL": "C.UTF-8",
        }

    def clear(self) -> None:
        """Removes all containers, volumes and networks, and images that newer ones replaced; the cache of builds stays."""
        client = docker.DockerClient(self.host, timeout=120)
        try:
            for container in client.containers.list(all=True, ignore_removed=True):
                with suppress(docker.errors.NotFound):
                    container.remove(force=True, v=True)
            client.networks.prune()
            for volume in client.volumes.list():
                volume.remove(force=True)
            client.images.prune(filters={"dangling": True})
        finally:
            client.close()

    def _clear_at_the_end(self) -> None:
        with suppress(docker.errors.DockerException, OSError):
            self.clear()

    def _remove_what_ran(self) -> None:
        self._remove_cgroups()
        for name in ("exec", "docker.sock", "dockerd.pid"):
            path = self.directory / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    @property
    def _docker_config(self) -> Path:
        return self.directory / "docker-config"

    @property
    def _cgroup(self) -> str:
        return "girder-slurm-test-engine"

    @property
    def _network_before(self) -> Path:
        return self.directory / "network-before.json"

    def _link_compose(self) -> None:
        plugin = self._docker_config / "cli-plugins" / "docker-compose"
        plugin.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        plugin.unlink(missing_ok=True)
        plugin.symlink_to(self.compose)

    def _note_network(self) -> None:
        before = {
            "bridges": _bridges(),
            "rules": [_run("iptables-save", "-t", table) for table in _TABLES],
            "forwarding": _FORWARDING.read_text(encoding="ascii"),
        }
        draft = self._network_before.with_suffix(".new")
        draft.write_text(json.dumps(before), encoding="utf-8")
        draft.replace(self._network_before)

    def _undo_network(self) -> None:
        """Back to what was noted, if anything was; a bridge that others made meanwhile is not Docker's and stays."""
        if not self._network_before.exists():
            return
        before = json.loads(self._network_before.read_text(encoding="utf-8"))
        for name in set(_bridges()) - set(before["bridges"]):
            if name == "docker0" or name.startswith("br-"):
                _run("ip", "link", "delete", name)
        for rules in before["rules"]:
            _run("iptables-restore", stdin=rules)
        _FORWARDING.write_text(before["forwarding"], encoding="ascii")
        self._network_before.unlink()

    def _remove_cgroups(self) -> None:
        for hierarchy in (_CGROUPS, *_CGROUPS.glob("*/")):
            top = hierarchy / self._cgroup
            for path, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):  # what still ends is removed the next time
                    Path(path).rmdir()


def _only_engine() -> TextIO:
    lock = _LOCK.open("a", encoding="ascii")
    until = time.monotonic() + _SECONDS_FOR_OTHERS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            assert time.monotonic() < until, f"other tests hold {_LOCK} for {_SECONDS_FOR_OTHERS} s"
            time.sleep(0.5)
        else:
            return lock


def _assert_no_other_engine() -> None:
    """What an engine that was killed left in the firewall does no harm: the next one makes its chains anew."""
    others = [process.pid for process in psutil.process_iter(["name"]) if _is_engine_here(process)]
    assert not others, (
        f"A Docker engine works in this machine's network (process {others[0]}). A second one would break its published"
        " ports: stop it, or run these tests on another machine."
    )


def _is_engine_here(process: psutil.Process) -> bool:
    try:
        network = Path(f"/proc/{process.pid}/ns/net").readlink()
    except OSError:
        return False
    return process.info["name"] == "dockerd" and network == Path("/proc/self/ns/net").readlink()


def _bridges() -> list[str]:
    links = json.loads(_run("ip", "-json", "link", "show", "type", "bridge") or "[]")
    return [link["ifname"] for link in links if link]


def _run(*argv: str, stdin: str | None = None) -> str:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout
