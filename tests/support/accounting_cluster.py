"""A Slurm cluster of a test's own with accounts: MariaDB, slurmdbd, slurmctld and one slurmd. Needs root.

It takes nothing from the stack's cluster but munge and the two accounts, and touches nothing of it.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.girder_site import wait_until
from tests.support.self_undoing import SelfUndoing
from tests.support.services import end, free_ports, listens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.stack import Stack

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_SLURM_CONF = """\
ClusterName=valhalla
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser={service_user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={munge}
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool-%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
MailProg=/bin/true
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={slurmd} CPUs=32{node_memory}
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=long Nodes=ALL MaxTime=INFINITE State=UP
SelectType=select/cons_tres
{memory}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={munge}
AccountingStorageEnforce=associations,limits,qos
PropagateResourceLimitsExcept=MEMLOCK,NOFILE
KillWait=2
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,sched_interval=2
"""

_SLURMDBD = ["slurmdbd", "-D"]
_COUNTED_MEMORY = "SelectTypeParameters=CR_Core_Memory\nDefMemPerCPU=64"

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser={service_user}
PidFile={base}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass=x
StorageLoc=slurm_acct_db
"""


@dataclass
class AccountingCluster(SelfUndoing):
    """The cluster. Use as a context manager; `sacctmgr` fills it."""

    stack: Stack
    #: Without it slurm.conf has no word about the nodes' memory.
    counts_memory: bool = True
    #: More lines for slurm.conf.
    more: Sequence[str] = ()
    base: Path = Path()
    _slurmdbd_port: int = 0
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def conf(self) -> Path:
        """What SLURM_CONF says."""
        return self.base / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Makes Slurm's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def _make(self, undo: contextlib.ExitStack) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="accounts-", dir="/var/tmp"))
        undo.callback(shutil.rmtree, self.base, ignore_errors=True)
        undo.callback(self._end)
        self._start()

    def run(self, *argv: str, user: bool = True) -> str:
        """What a Slurm command prints, asked by the job user or by root."""
        command = self.stack.as_user(list(argv)) if user else list(argv)
        env = {"PATH": _PATH, "LANG": "C.UTF-8", **self.environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            msg = f"{argv}: {done.returncode} {done.stdout} {done.stderr}"
            raise AssertionError(msg)
        return done.stdout

    def sacctmgr(self, *words: str) -> None:
        """Changes accounts, users and QOS."""
        self.run("sacctmgr", "-i", *words, user=False)

    @contextlib.contextmanager
    def without_slurmdbd(self) -> Iterator[None]:
        """slurmdbd is killed for as long as the block lasts; slurmctld keeps for it what happens meanwhile."""
        (process,) = (process for process in self._processes if process.args[-2:] == _SLURMDBD)
        process.kill()
        process.wait(20)
        self._processes.remove(process)
        try:
            yield
        finally:
            self._begin(_SLURMDBD, self.stack["DEVSTACK_SERVICE_USER"], self._slurmdbd_port)

    def _start(self) -> None:
        service_user = self.stack["DEVSTACK_SERVICE_USER"]
        text = Path(self.stack["SLURM_CONF"]).read_text(encoding="utf-8")
        found = re.search(r"^AuthInfo=socket=(.*)$", text, re.MULTILINE)
        assert found is not None, text
        ports = dict(zip(("mariadb", "slurmdbd", "slurmctld", "slurmd"), free_ports(4), strict=True))
        words = {
            "base": self.base,
            "host": socket.gethostname().split(".")[0],
            "munge": found[1],
            "service_user": service_user,
            # The names of all nodes of a machine differ.
            "node": f"acct{ports['slurmd']}",
            "node_memory": " RealMemory=16000" if self.counts_memory else "",
            "memory": _COUNTED_MEMORY if self.counts_memory else "SelectTypeParameters=CR_Core",
            **ports,
        }
        self.base.chmod(0o755)
        for name in ("state", "db"):
            (self.base / name).mkdir(mode=0o700)
            shutil.chown(self.base / name, service_user)
        lines = "".join(f"{line}\n" for line in self.more)
        self.conf.write_text(_SLURM_CONF.format(**words) + lines, encoding="utf-8")
        (self.base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="ascii")
        dbd_conf = self.base / "slurmdbd.conf"
        dbd_conf.touch(mode=0o600)
        dbd_conf.write_text(_SLURMDBD_CONF.format(**words), encoding="utf-8")
        shutil.chown(dbd_conf, service_user)
        self._start_mariadb(service_user, ports["mariadb"])
        self._slurmdbd_port = ports["slurmdbd"]
        self._begin(_SLURMDBD, service_user, self._slurmdbd_port)
        self.sacctmgr("add", "cluster", "valhalla")
        self._begin(["slurmctld", "-D", "-f", str(self.conf)], service_user, ports["slurmctld"])
        self._begin(["slurmd", "-D", "-N", str(words["node"]), "-f", str(self.conf)], "root", ports["slurmd"])
        wait_until("the node is idle", lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"), seconds=30)

    def _start_mariadb(self, user: str, port: int) -> None:
        data, sock = self.base / "db", self.base / "db" / "s.sock"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={data}",
             "--auth-root-authentication-method=normal", "--skip-test-db"],
            env={"PATH": _PATH}, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self._begin(
            ["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={sock}", "--bind-address=127.0.0.1",
             f"--port={port}", "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900",
             "--innodb-flush-log-at-trx-commit=0"],
            user, port,
        )  # fmt: skip
        grants = "".join(
            f"CREATE USER slurm@'{host}' IDENTIFIED BY 'x'; GRANT ALL ON slurm_acct_db.* TO slurm@'{host}';"
            for host in ("localhost", "127.0.0.1")
        )
        subprocess.run(
            ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "--execute", grants],
            env={"PATH": _PATH}, check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def _begin(self, argv: Sequence[str], user: str, port: int) -> None:
        log = self.base / f"{argv[0]}.log"
        as_user = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*as_user, *argv],
                env={"PATH": _PATH, "LANG": "C.UTF-8", "HOME": str(self.base), **self.environment},
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        wait_until(
            f"{argv[0]} answers",
            lambda: listens(port),
            seconds=60,
            give_up=lambda: "" if process.poll() is None else log.read_text(errors="replace")[-2000:],
        )

    def _end(self) -> None:
        # Whatever failed, its processes end.
        with contextlib.suppress(subprocess.SubprocessError, OSError, AssertionError):
            self._end_jobs()
        for process in reversed(self._processes):
            end(process, seconds=20)

    def _end_jobs(self) -> None:
        for state in ("PENDING", "RUNNING"):
            self.run("scancel", "--quiet", f"--state={state}", user=False)
        wait_until("no job is left", lambda: not self.run("squeue", "-h", user=False).strip(), seconds=20)
