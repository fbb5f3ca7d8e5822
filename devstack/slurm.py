"""A private Slurm cluster: one controller and three nodes on this host."""

from __future__ import annotations

import os
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .accounts import group_of
from .commands import run
from .errors import CommandFailedError
from .files import ensure_directory, write_file
from .ports import answers as port_answers
from .processes import ProcessSpec, all_pids, command_words, is_marked_by, wait_until
from .service import Context, Service

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .layout import Layout

NODE_COUNT = 3
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_V1_CONTROLLERS = ("freezer", "memory", "cpuset", "cpuacct", "devices")
_USABLE_STATES = ("idle", "mix", "alloc", "comp", "drain", "drng", "resv", "plnd", "planned")

_SLURM_CONF = """\
# Written by devstack at each start; changes are lost.
ClusterName=devstack
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={service_user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={munge_socket}
StateSaveLocation={base}/slurm/state
SlurmdSpoolDir={base}/slurm/spool-%n
SlurmctldPidFile={base}/run/slurm/slurmctld.pid
SlurmdPidFile={base}/run/slurm/slurmd-%n.pid
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
MpiDefault=none

# Nodes: far more CPUs than the machine has, so that many small jobs run at once.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports} CPUs=72 \\
    RealMemory=16000 Gres=gpu:fake:2
ReturnToService=2
SlurmdTimeout=10

# Partitions: jobs in `high` push jobs out of `low`; `normal` takes no part in that.
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF

# Jobs
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=64
ProctrackType={proctrack}
TaskPlugin={task_plugin}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
JobCompType=jobcomp/filetxt
JobCompLoc={base}/slurm/jobs.log
PropagateResourceLimitsExcept=MEMLOCK,NOFILE
KillWait=5
MinJobAge=300

# Quick, because tests wait for it.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,default_queue_depth=2000,bf_interval=5,bf_max_job_test=2000

# Your own lines: kept across starts, read by `scontrol reconfigure`.
Include {site_conf}
"""


def node_names(prefix: str) -> list[str]:
    """Names of the nodes of a stack with this prefix."""
    return [f"{prefix}{number}" for number in range(1, NODE_COUNT + 1)]


def choose_node_prefix(layout: Layout, remembered: str) -> str:
    """The remembered prefix or `gs`; `gsb`, `gsc` ... when another running stack has nodes of that name.

    The names must differ: processes of a node are kept in a cgroup that is called after it.
    """
    foreign = set()
    for pid in all_pids():
        words = command_words(pid)
        if words and words[0].endswith("slurmd") and "-N" in words and not is_marked_by(pid, layout):
            foreign.add(words[words.index("-N") + 1])
    for prefix in (remembered or "gs", "gs", *(f"gs{letter}" for letter in "bcdefghijklmnopqrstuvwxyz")):
        if not foreign & set(node_names(prefix)):
            return prefix
    return f"gs{os.getpid()}x"


def slurm_version() -> tuple[int, int]:
    """Version of the installed Slurm, as (22, 5)."""
    match = re.search(r"(\d+)\.(\d+)", run(["/usr/sbin/slurmctld", "-V"]))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def memory_limits_can_be_enforced() -> bool:
    """Whether this machine lets us make cgroups (version 1) that hold jobs and limit their memory."""
    probe_name = f"devstack-probe-{os.getpid()}"
    for controller in ("freezer", "memory", "cpuset"):
        probe = _CGROUP_ROOT / controller / probe_name
        try:
            probe.mkdir()
            if controller == "memory":
                (probe / "memory.limit_in_bytes").write_text("104857600", encoding="ascii")
        except OSError:
            return False
        finally:
            with suppress(OSError):
                probe.rmdir()
    return True


def write_configuration(context: Context) -> None:
    """Write slurm.conf, gres.conf and cgroup.conf for what this machine can do."""
    layout, state = context.layout, context.state
    directory = layout.slurm_conf.parent
    ensure_directory(directory, mode=0o755)
    ensure_directory(layout.below("slurm"), mode=0o755)
    ensure_directory(layout.below("slurm", "state"), mode=0o700, owner=context.service_user)
    ensure_directory(layout.below("run", "slurm"), mode=0o755, owner=context.service_user)
    completions = layout.below("slurm", "jobs.log")
    if not completions.exists():
        write_file(completions, "", mode=0o640, owner=context.service_user, group=group_of(context.job_user))
    enforced = state.cgroups == "v1"
    node_ports = ",".join(str(context.port(f"slurmd-{number}")) for number in range(1, NODE_COUNT + 1))
    site_conf = directory / "site.conf"
    if not site_conf.exists():
        write_file(site_conf, "# Lines of your own for this cluster.\n", mode=0o644)
    text = _SLURM_CONF.format(
        base=layout.base,
        site_conf=site_conf,
        host=socket.gethostname().split(".")[0],
        controller_port=context.port("slurmctld"),
        service_user=context.service_user,
        munge_socket=layout.munge_socket,
        nodes=f"{state.node_prefix}[1-{NODE_COUNT}]",
        node_ports=f"[{node_ports}]",
        proctrack="proctrack/cgroup" if enforced else "proctrack/linuxproc",
        task_plugin="task/cgroup" if enforced else "task/none",
    )
    write_file(layout.slurm_conf, text, mode=0o644)
    gpus = _fake_gpus(directory)
    gres = f"AutoDetect=off\nNodeName={state.node_prefix}[1-{NODE_COUNT}] Name=gpu Type=fake File={gpus}\n"
    write_file(directory / "gres.conf", gres, mode=0o644)
    if enforced:
        cgroup = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={_CGROUP_ROOT}\nConstrainRAMSpace=yes\n"
    elif slurm_version() >= (23, 2):
        cgroup = "CgroupPlugin=disabled\n"
    else:
        # 22.05 has no `disabled`; version 1, unlike 2, does nothing as long as no plugin asks it to.
        cgroup = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={_CGROUP_ROOT}\n"
    write_file(directory / "cgroup.conf", cgroup, mode=0o644)


def remove_cgroups(names: Iterable[str]) -> None:
    """Remove the empty cgroups that stopped nodes leave."""
    for name in names:
        for controller in _V1_CONTROLLERS:
            for parent, _directories, _files in os.walk(
                _CGROUP_ROOT / controller / f"slurm_{name}", topdown=False
            ):
                with suppress(OSError):
                    Path(parent).rmdir()


class Slurmctld(Service):
    """The controller, run by the service account, which is also the cluster's administrator."""

    name = "slurmctld"
    needs = ("munge",)
    port_names = ("slurmctld",)

    def prepare(self) -> None:
        """Write the cluster's configuration."""
        write_configuration(self.context)

    def processes(self) -> Sequence[ProcessSpec]:
        """The daemon in the foreground."""
        argv = ["/usr/sbin/slurmctld", "-D", "-f", self.context.layout.slurm_conf]
        return [ProcessSpec(self.name, argv, self.context.service_user, _environment(self.context))]

    def answers(self) -> bool:
        """Whether the controller says it is up."""
        if not port_answers(self.context.port("slurmctld")):
            return False
        try:
            return " is UP" in self._ask("/usr/bin/scontrol", "ping")
        except CommandFailedError:
            return False

    def cancel_all_jobs(self) -> None:
        """End every job and wait for it a little; what survives is killed later."""
        if not port_answers(self.context.port("slurmctld")):
            return
        with suppress(CommandFailedError):
            if not self._ask("/usr/bin/squeue", "--noheader", "--format=%i").strip():
                return
            with self.context.report.step("slurm: jobs cancelled"):
                for state in ("PENDING", "RUNNING", "SUSPENDED"):
                    self._ask("/usr/bin/scancel", "--quiet", f"--state={state}")
                wait_until(
                    lambda: not self._ask("/usr/bin/squeue", "--noheader", "--format=%i").strip(),
                    timeout_seconds=10,
                )

    def _ask(self, *argv: str) -> str:
        account = self.context.service_user if os.geteuid() == 0 else None
        return run(argv, timeout_seconds=15, account=account, environment=_client_environment(self.context))


class Slurmd(Service):
    """One node. It needs root, because it starts jobs as their owners."""

    needs = ("munge", "slurmctld")
    # Its steps are children of init and outlive it, as on a real node that loses its daemon.

    def __init__(self, context: Context, number: int) -> None:
        super().__init__(context)
        self.number = number
        self.name = f"slurmd-gs{number}"  # the service's name does not follow the node's
        self.port_names = (f"slurmd-{number}",)

    @property
    def node(self) -> str:
        """The node's name in Slurm."""
        return f"{self.context.state.node_prefix}{self.number}"

    def prepare(self) -> None:
        """Make the spool directory."""
        write_configuration(self.context)
        ensure_directory(self.context.layout.below("slurm", f"spool-{self.node}"), mode=0o755)

    def processes(self) -> Sequence[ProcessSpec]:
        """The daemon in the foreground."""
        argv = ["/usr/sbin/slurmd", "-D", "-N", self.node, "-f", self.context.layout.slurm_conf]
        return [ProcessSpec(self.name, argv, "root", _environment(self.context))]

    def answers(self) -> bool:
        """Whether the daemon accepts connections."""
        return port_answers(self.context.port(f"slurmd-{self.number}"))

    def is_ready(self) -> bool:
        """Whether the controller would place jobs here."""
        if not self.answers():
            return False
        argv = ["/usr/bin/sinfo", "--noheader", f"--nodes={self.node}", "--format=%T"]
        try:
            text = run(argv, timeout_seconds=15, environment=_client_environment(self.context))
        except CommandFailedError:
            return False
        states = text.split()
        return bool(states) and all(_is_usable(state) for state in states)

    def describe(self) -> str:
        """Says the node's name too, which differs from the service's in a second stack."""
        return f"node {self.node}, {super().describe()}"


def settle_cgroups(context: Context) -> None:
    """Decide, at each start of a stopped cluster, whether jobs are held in cgroups; noted for `status`."""
    enforced = memory_limits_can_be_enforced()
    context.state.cgroups = "v1" if enforced else "none"
    context.state.notes["memory limits"] = (
        "enforced by Slurm (OUT_OF_MEMORY is real)"
        if enforced
        else "not enforced: /sys/fs/cgroup has no writable version 1 hierarchy, so no job ends OUT_OF_MEMORY"
    )


def _fake_gpus(directory: Path) -> str:
    """Two device files that stand for GPUs, as gres.conf wants them; Slurm looks at their kind and number."""
    files = [directory / "fakegpu0", directory / "fakegpu1"]
    try:
        for file, minor in zip(files, (3, 5), strict=True):  # the devices of /dev/null and /dev/zero
            if not file.is_char_device():
                file.unlink(missing_ok=True)
                os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, minor))
    except PermissionError:  # a container without CAP_MKNOD; jobs then see no CUDA_VISIBLE_DEVICES
        return "/dev/null,/dev/zero"
    return f"{directory}/fakegpu[0-1]"


def _is_usable(state: str) -> bool:
    return state.startswith(_USABLE_STATES) and not state.endswith("*")


def _environment(context: Context) -> dict[str, str]:
    return {**context.service_environment(), "SLURM_CONF": str(context.layout.slurm_conf)}


def _client_environment(context: Context) -> dict[str, str]:
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "LANG": "C.UTF-8", "SLURM_CONF": str(context.layout.slurm_conf)}
