"""The command line: parse, become root where needed, call the stack, print."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import DevstackError, UsageError
from .files import ensure_directory
from .layout import DEFAULT_BASE, Layout
from .processes import wait_until
from .report import Report
from .stack import Stack
from .state import Secrets, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_DESCRIPTION = """\
Run the real stack on this machine: Slurm (three nodes), Apptainer, RabbitMQ, Redis, MongoDB, Girder and a
container registry, without Docker and without systemd, below one directory and on ports of its own.
"""
_EPILOG = """\
environment:
  DEVSTACK_DIR           base directory (default: /var/tmp/girder-slurm-devstack)
  DEVSTACK_USER          account of the worker and the jobs (default: girderslurm); made if missing
  DEVSTACK_SERVICE_USER  account of the services (default: DEVSTACK_USER with -svc); made if missing

After `up`, DEVSTACK_DIR/env tells where everything is:  set -a; . DEVSTACK_DIR/env; set +a
exit codes: 0 done (status: all is up), 1 something is wrong or down, 2 wrong usage
"""
_PASSED_TO_ROOT = ("DEVSTACK_DIR", "DEVSTACK_USER", "DEVSTACK_SERVICE_USER")
_LOCK_SECONDS = 600


def main(script: Path, arguments: Sequence[str]) -> int:
    """Run one command; the answer is the exit code."""
    options = _parser().parse_args(arguments)
    os.umask(0o022)  # other accounts run what we install
    try:
        if options.command != "status" and os.geteuid() != 0:
            _become_root(script, arguments)
        layout = Layout.from_text(os.environ.get("DEVSTACK_DIR") or DEFAULT_BASE)
        return _run(options, layout)
    except DevstackError as error:
        sys.stderr.write(f"devstack: {' '.join(str(error).split())}\n")
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        sys.stderr.write(
            f"devstack: {error}: is the disk full, or did another program change the directory?\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("devstack: interrupted; `devstack down` ends what was started\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="devstack",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("install", help="put everything on disk, start nothing")
    commands.add_parser("up", help="install what is missing and start what does not run")
    commands.add_parser("down", help="end every process of the stack; data stays")
    status = commands.add_parser("status", help="say what is up; exit code 0 if all is")
    status.add_argument("--json", action="store_true", help="print JSON for machines")
    commands.add_parser("wipe", help="down, then remove the base directory and the accounts we created")
    for name, text in (
        ("start", "start single services"),
        ("stop", "stop single services, for tests of failures"),
        ("restart", "stop and start single services"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("service", nargs="+", metavar="SERVICE", help="a name from `devstack status`")
        if name != "start":
            command.add_argument("--kill", action="store_true", help="SIGKILL at once instead of SIGTERM")
    return parser


def _run(options: argparse.Namespace, layout: Layout) -> int:
    report = Report()
    state = State.load(layout)
    if options.command == "status":
        return _print_status(layout, state, report, as_json=options.json)
    if options.command in ("install", "up"):
        return _install(layout, report, start=options.command == "up")
    if state is None:
        if options.command in ("down", "wipe"):
            report.line(f"nothing is installed in {layout.base}")
            return 0
        raise DevstackError(f"nothing is installed in {layout.base}: run `devstack up` first")
    with _only_one(layout):
        stack = Stack(layout, State.load(layout) or state, report)  # it may have changed while we waited
        if options.command == "down":
            stack.down()
            report.total("the stack is down")
        elif options.command == "wipe":
            stack.wipe()
            report.total("the stack is gone")
        else:
            if options.command != "start":
                stack.stop(options.service, kill=options.kill)
            if options.command != "stop":
                stack.start(options.service)
    return 0


def _install(layout: Layout, report: Report, *, start: bool) -> int:
    if layout.base.exists() and not layout.state_file.exists() and any(layout.base.iterdir()):
        raise DevstackError(
            f"{layout.base} is not empty and not a stack of ours: choose another DEVSTACK_DIR"
        )
    if not layout.base.parent.is_dir():
        raise DevstackError(f"{layout.base.parent} does not exist: make it or choose another DEVSTACK_DIR")
    ensure_directory(layout.base, mode=0o755)
    with _only_one(layout):
        state = State.load(layout) or State(*_account_names())
        if os.environ.get("DEVSTACK_USER", state.job_user) != state.job_user:
            raise DevstackError(
                f"the stack was set up for {state.job_user}: `devstack wipe` before changing DEVSTACK_USER"
            )
        state.save(layout)
        Secrets.ensure(layout.secrets_file)
        stack = Stack(layout, state, report)
        stack.install()
        if not start:
            report.total("all is installed")
            return 0
        stack = Stack(layout, state, report)  # the accounts exist now
        started = stack.up()
        report.total(f"the stack is up, {started} services started; see {layout.env_file}")
    return 0


def _account_names() -> tuple[str, str]:
    job_user = os.environ.get("DEVSTACK_USER") or "girderslurm"
    return job_user, os.environ.get("DEVSTACK_SERVICE_USER") or f"{job_user}-svc"


def _print_status(layout: Layout, state: State | None, report: Report, *, as_json: bool) -> int:
    if state is None or not state.ports:
        if as_json:
            report.line(json.dumps({"up": False, "directory": str(layout.base), "services": [], "notes": {}}))
        else:
            report.line(f"nothing was started in {layout.base}: run `devstack up`")
        return 1
    services = Stack(layout, state, report).status()
    up = all(bool(service["up"]) for service in services)
    if as_json:
        document = {"up": up, "directory": str(layout.base), "services": services, "notes": state.notes}
        report.line(json.dumps(document, indent=2))
    else:
        for service in services:
            text = f"ok    {service['detail']}" if service["up"] else f"down  log: {service['log']}"
            report.line(f"{service['service']:<20} {text}")
        for subject, note in state.notes.items():
            report.line(f"note: {subject}: {note}")
    return 0 if up else 1


@contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    """Hold the stack's lock, so that two commands do not start the same service twice."""
    with layout.lock_file.open("a", encoding="ascii") as stream:

        def taken() -> bool:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait_until(taken, timeout_seconds=_LOCK_SECONDS, interval_seconds=0.2):
            raise DevstackError(
                f"another devstack command has been at work for {_LOCK_SECONDS} s: end it first"
            )
        if not _is_still_there(layout.lock_file, stream.fileno()):
            raise DevstackError(f"{layout.base} was wiped by another devstack command: run this one again")
        yield


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _become_root(script: Path, arguments: Sequence[str]) -> None:
    """Start again through sudo; returns never."""
    sudo = shutil.which("sudo")
    if sudo is None:
        raise DevstackError("this needs root and there is no sudo: run it as root")
    kept = [
        name
        for name in os.environ
        if name in _PASSED_TO_ROOT or name.startswith("PIP_") or name.lower().endswith("_proxy")
    ]
    options = [] if sys.stdin.isatty() else ["-n"]
    variables = [f"{name}={os.environ[name]}" for name in kept]
    os.execv(sudo, [sudo, *options, "/usr/bin/env", *variables, sys.executable, str(script), *arguments])  # noqa: S606
