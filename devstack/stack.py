"""Puts the services together: the only module that knows all of them, and in which order they live."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import accounts, env_file, packages, slurm
from .apptainer import Apptainer
from .commands import succeeds
from .compose import Compose
from .errors import DevstackError, UsageError
from .files import ensure_directory
from .girder import Girder, GirderLocalWorker
from .mongodb import MongoDB
from .munge import Munge
from .ports import find_free, is_free
from .processes import Supervisor, identities, kill_leftovers, leftovers, mounts_below, raise_file_limit
from .python_environment import PythonEnvironment
from .rabbitmq import RabbitMQ
from .redis_server import Redis
from .registry import Registry
from .service import Context, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .layout import Layout
    from .report import Report
    from .state import State


class Stack:
    """All services below one base directory."""

    def __init__(self, layout: Layout, state: State, report: Report) -> None:
        group = accounts.group_of(state.job_user) if accounts.exists(state.job_user) else "root"
        self.context = Context(layout, state, Supervisor(layout, group), report)
        self.apptainer = Apptainer(self.context)
        self.compose = Compose(self.context)
        nodes = [slurm.Slurmd(self.context, number) for number in range(1, slurm.NODE_COUNT + 1)]
        self.slurmctld = slurm.Slurmctld(self.context)
        self.services: list[Service] = [
            Munge(self.context),
            self.slurmctld,
            *nodes,
            RabbitMQ(self.context),
            Redis(self.context),
            MongoDB(self.context),
            Girder(self.context),
            GirderLocalWorker(self.context),
            Registry(self.context),
        ]

    def install(self) -> None:
        """Everything on disk; quick when it is there already."""
        context = self.context
        packages.install(context.report)
        accounts.ensure(context.state, context.layout, context.report)
        self._make_directories()
        environment = PythonEnvironment(context.layout.girder_venv)
        if environment.ensure():
            context.report.line("girder: virtual environment made")
        installs: list[Callable[[], None]] = [service.install for service in self.services]
        _all_at_once([self.apptainer.install, self.compose.install, *installs])
        context.state.save(context.layout)

    def up(self) -> int:
        """Start what is not running; the answer is the number of services started now."""
        context = self.context
        raise_file_limit()
        self._settle_ports()
        started: list[str] = []

        def start(service: Service) -> None:
            with context.report.step(f"{service.name}: up") if not service.is_up() else _Nothing():
                if service.start():
                    started.append(service.name)

        _in_order(self.services, start)
        env_file.write(context)
        context.state.save(context.layout)
        return len(started)

    def start(self, names: Sequence[str]) -> None:
        """Start the named services; what they need is expected to run."""
        raise_file_limit()
        for service in self._named(names):
            with self.context.report.step(f"{service.name}: up"):
                service.start()

    def stop(self, names: Sequence[str], *, kill: bool = False) -> None:
        """Stop the named services and nothing else."""
        for service in reversed(self._named(names)):
            with self.context.report.step(f"{service.name}: {'killed' if kill else 'stopped'}"):
                service.stop(kill=kill)

    def down(self) -> None:
        """End everything of this stack; raises if a process cannot be ended."""
        context = self.context
        uids = accounts.uids(context.state)
        # Daemons that jobs started lose every tie to the stack when their job ends: remember them now.
        known = identities(leftovers(context.layout, uids))
        if context.state.ports:
            self.slurmctld.cancel_all_jobs()

        def stop(service: Service) -> None:
            with context.report.step(f"{service.name}: stopped") if _runs(service) else _Nothing():
                service.stop()

        _in_order(self.services, stop, backwards=True)
        remaining = kill_leftovers(context.layout, uids, known)
        if remaining:
            listing = "; ".join(f"{pid} {command}" for pid, command in remaining.items())
            raise DevstackError(f"these processes do not end: {listing}")
        if context.state.node_prefix:
            slurm.remove_cgroups(slurm.node_names(context.state.node_prefix))

    def wipe(self) -> None:
        """`down`, then remove the base directory and the accounts that we created."""
        self.down()
        base = self.context.layout.base
        mounted = mounts_below(base)
        if mounted:
            raise DevstackError(
                f"{mounted[0]} is a mount point, and removing would reach behind it: umount {mounted[0]}"
            )
        with self.context.report.step(f"{base}: removed"):
            shutil.rmtree(base)
        accounts.remove_created(self.context.state, self.context.report)

    def status(self) -> list[dict[str, object]]:
        """One entry per service: name, whether it is up, where its log is, and a description."""
        with ThreadPoolExecutor(max_workers=len(self.services)) as pool:
            ups = list(pool.map(lambda service: service.is_up(), self.services))
        return [
            {
                "service": service.name,
                "up": up,
                "log": str(self.context.supervisor.log_of(service.name)),
                "detail": service.describe() if up else "",
            }
            for service, up in zip(self.services, ups, strict=True)
        ]

    def service_names(self) -> list[str]:
        """Names that `start`, `stop` and `restart` take."""
        return [service.name for service in self.services]

    def _named(self, names: Sequence[str]) -> list[Service]:
        unknown = [name for name in names if name not in self.service_names()]
        if unknown:
            raise UsageError(f"no service {unknown[0]!r}: choose from {', '.join(self.service_names())}")
        return [service for service in self.services if service.name in names]

    def _make_directories(self) -> None:
        layout, job_user, owner = self.context.layout, self.context.job_user, self.context.service_user
        group = accounts.group_of(job_user)
        for directory in (layout.bin, layout.etc, layout.run, layout.below("opt")):
            ensure_directory(directory, mode=0o755)
        ensure_directory(layout.log, mode=0o750, group=group)
        ensure_directory(layout.temporary, mode=0o700, owner=owner)
        ensure_directory(layout.below("home"), mode=0o700, owner=owner)
        ensure_directory(layout.shared, mode=0o700, owner=job_user)
        if not _can_enter(job_user, layout):
            raise DevstackError(
                f"{job_user} cannot enter {layout.base}: chmod a+x its parents or choose another DEVSTACK_DIR"
            )

    def _settle_ports(self) -> None:
        """Give every service a port, if possible the remembered one; nothing moves while something runs."""
        state = self.context.state
        wanted = [name for service in self.services for name in service.port_names]
        anything_runs = any(_runs(service) for service in self.services)
        if not anything_runs:
            slurm.settle_cgroups(self.context)
            state.node_prefix = slurm.choose_node_prefix(self.context.layout, state.node_prefix)
            state.ports = {name: port for name, port in state.ports.items() if is_free(port)}
        missing = [name for name in wanted if name not in state.ports]
        state.ports.update(find_free(missing, state.ports.values()))
        state.save(self.context.layout)


class _Nothing:
    """A context manager that does nothing."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *_details: object) -> None:
        return


def _runs(service: Service) -> bool:
    return any(service.context.supervisor.running(name) is not None for name in service.process_names())


def _can_enter(account: str, layout: Layout) -> bool:
    return succeeds(["/usr/bin/test", "-x", layout.base], account=account)


def _all_at_once(actions: Iterable[Callable[[], None]]) -> None:
    """Run the actions in parallel; raises the first problem once all have ended."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        for future in [pool.submit(action) for action in actions]:
            future.result()


def _in_order(
    services: Sequence[Service], action: Callable[[Service], None], *, backwards: bool = False
) -> None:
    """Run the action on all services in parallel, each after those it needs (`backwards`: that need it).

    A service whose predecessor failed is left out; the first problem is raised once all others have ended.
    """
    done = {service.name: threading.Event() for service in services}
    failed: dict[str, BaseException] = {}
    before = {service.name: set(service.needs) for service in services}
    if backwards:
        before = {
            service.name: {other.name for other in services if service.name in other.needs}
            for service in services
        }

    def work(service: Service) -> None:
        try:
            for name in before[service.name]:
                done[name].wait()
            if backwards or not before[service.name] & failed.keys():
                action(service)
            else:
                failed.setdefault(service.name, DevstackError(f"{service.name}: not started"))
        except Exception as error:  # noqa: BLE001  # handed on below
            failed[service.name] = error
        finally:
            done[service.name].set()

    with ThreadPoolExecutor(max_workers=len(services)) as pool:
        list(pool.map(work, services))
    real = [error for error in failed.values() if "not started" not in str(error)]
    if real:
        raise real[0]
