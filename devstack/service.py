"""The interface every part of the stack has, and the ordinary way to implement it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .commands import clean_environment
from .errors import DevstackError
from .ports import is_free
from .processes import ProcessSpec, Supervisor, wait_until
from .state import Secrets, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .layout import Layout
    from .report import Report


@dataclass(frozen=True)
class Context:
    """What every service is given."""

    layout: Layout
    state: State
    supervisor: Supervisor
    report: Report

    @property
    def job_user(self) -> str:
        """The account that owns the worker and the jobs."""
        return self.state.job_user

    @property
    def service_user(self) -> str:
        """The account that runs the services."""
        return self.state.service_user

    def port(self, name: str) -> int:
        """The port remembered under this name."""
        try:
            return self.state.ports[name]
        except KeyError as error:
            raise DevstackError(f"no port is known for {name}: run `devstack up` first") from error

    def secrets(self) -> Secrets:
        """The stack's passwords; needs root."""
        return Secrets.ensure(self.layout.secrets_file)

    def service_environment(self) -> dict[str, str]:
        """The environment services start from."""
        return {
            **clean_environment(self.service_user, self.layout.below("home")),
            "TMPDIR": str(self.layout.temporary),
        }


class Service(ABC):
    """One service of the stack. Subclasses say what it needs, runs and answers; the rest is common."""

    name: str
    needs: tuple[str, ...] = ()  # services that must be up before this one starts
    port_names: tuple[str, ...] = ()
    start_seconds: float = 60  # how long a start may take
    grace_seconds: float = 15  # from SIGTERM to SIGKILL

    def __init__(self, context: Context) -> None:
        self.context = context

    def install(self) -> None:
        """Put on disk what apt does not bring; quick when it is there already."""
        return

    def prepare(self) -> None:
        """Write configuration and data directories; called before each start."""
        return

    def after_start(self) -> None:
        """What is left to do once the service answers; must be repeatable."""
        return

    @abstractmethod
    def processes(self) -> Sequence[ProcessSpec]:
        """The processes of the service, in the order to start them."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the service does its work at this moment; quick, and needs no root."""

    def is_ready(self) -> bool:
        """Whether a service just started can be used; stricter than `answers` where that is worth a wait."""
        return self.answers()

    def process_names(self) -> list[str]:
        """Names under which the processes are supervised and logged."""
        return [self.name]

    def start(self) -> bool:
        """Bring the service up and wait for it; False when it was up already."""
        if self.is_up():
            return False
        supervisor = self.context.supervisor
        names = self.process_names()
        if any(supervisor.running(name) is None for name in names):
            for name in reversed(names):
                supervisor.stop(name, grace_seconds=self.grace_seconds)
            self._require_ports()
            self.prepare()
            for spec in self.processes():
                supervisor.spawn(spec)
        wait_until(lambda: self._died() is not None or self.is_ready(), timeout_seconds=self.start_seconds)
        died = self._died()
        if died is not None or not self.is_ready():
            what = "ended at its start" if died else f"not ready after {self.start_seconds:.0f} s"
            name = died or names[-1]
            words = supervisor.last_log_lines(name)
            raise DevstackError(f"{self.name}: {what}: {words} (log: {supervisor.log_of(name)})")
        self.after_start()
        return True

    def stop(self, *, kill: bool = False) -> bool:
        """End the service; False when nothing of it ran."""
        supervisor = self.context.supervisor
        ran = any(supervisor.running(name) is not None for name in self.process_names())
        for name in reversed(self.process_names()):
            supervisor.stop(name, grace_seconds=self.grace_seconds, kill=kill)
        return ran

    def is_up(self) -> bool:
        """Whether all processes live and the service answers."""
        return self._died() is None and self.answers()

    def describe(self) -> str:
        """One line for people: where it listens, which process it is."""
        running = self.context.supervisor.running(self.process_names()[-1])
        where = ", ".join(f"port {self.context.state.ports[name]}" for name in self.port_names[:1])
        return ", ".join(part for part in (where, f"pid {running.pid}" if running else "") if part)

    def _died(self) -> str | None:
        for name in self.process_names():
            if self.context.supervisor.running(name) is None:
                return name
        return None

    def _require_ports(self) -> None:
        for name in self.port_names:
            port = self.context.port(name)
            if not is_free(port):
                raise DevstackError(
                    f"{self.name}: port {port} is used by another program now:"
                    " `devstack down`, then `devstack up`"
                )
