"""The program that all containers with Girder in them start."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .environment import Site
from .errors import SetupError


def main(arguments: list[str]) -> int:
    """Does one thing; 1 if a person has to mend something first, which is then said on standard error."""
    parser = argparse.ArgumentParser(prog="girder_compose", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="give directories to DSA_USER, compare .env")
    prepare.add_argument("owner", metavar="UID:GID")
    prepare.add_argument("directories", nargs="+", type=Path, metavar="DIRECTORY")
    commands.add_parser("accounts", help="try the passwords, make MongoDB's first user")
    commands.add_parser("serve", help="run Girder")
    commands.add_parser("local-worker", help="run Girder's own worker")
    provision = commands.add_parser("provision", help="set Girder up as a file says")
    provision.add_argument("file", type=Path)
    health = commands.add_parser("health", help="exit code 0 if the service is all right")
    health.add_argument("service", choices=("girder", "local-worker"))
    options = parser.parse_args(arguments)
    try:
        _ACTIONS[options.command](options, Site.here())
    except SetupError as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        return 1
    return 0


# What only one command needs is imported when it runs: the health checks run often, and should be quick.


def _prepare(options: argparse.Namespace, site: Site) -> None:
    from .prepare import ENV_FILE, check_env_file, give, owner_of

    user, group = owner_of(options.owner)
    for directory in options.directories:
        changed = give(directory, user, group)
        print(f"{directory}: {'now belongs' if changed else 'belongs'} to {user}:{group}")
    check_env_file(ENV_FILE.read_text(encoding="utf-8"), site)


def _accounts(options: argparse.Namespace, site: Site) -> None:
    from .accounts import check_broker, check_database
    from .broker import without_password

    del options
    broker, _ = site.broker_urls()
    check_broker(broker)
    print(f"The broker at {without_password(broker)} lets us in")
    print(check_database(site))


def _serve(options: argparse.Namespace, site: Site) -> None:
    del options
    # All addresses of the container; docker-compose.yaml says at which of the host it can be reached.
    argv = ["girder", "serve", "--mode", "production", "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104
    os.execvpe(argv[0], argv, site.for_girder())


def _local_worker(options: argparse.Namespace, site: Site) -> None:
    del options
    # Celery takes a group without a name, as DSA_USER's is in the image, for root's and would not start.
    environment = {**site.for_girder(), "C_FORCE_ROOT": "1"}
    concurrency = site.environment.get("LOCAL_WORKER_CONCURRENCY") or "2"
    argv = [
        "celery",
        "-A",
        "girder_worker.app",
        "worker",
        "-Q",
        "local",
        "-c",
        concurrency,
        "-n",
        "local@%h",
        "-l",
        "INFO",
    ]
    os.execvpe(argv[0], argv, environment)


def _provision(options: argparse.Namespace, site: Site) -> None:
    from .provision import provision

    provision(options.file, site)


def _health(options: argparse.Namespace, site: Site) -> None:
    from . import health

    {"girder": health.check_girder, "local-worker": health.check_local_worker}[options.service](site)


_ACTIONS = {
    "prepare": _prepare,
    "accounts": _accounts,
    "serve": _serve,
    "local-worker": _local_worker,
    "provision": _provision,
    "health": _health,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
