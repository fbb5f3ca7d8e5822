"""Starts the worker, and says if it takes tasks."""

from __future__ import annotations

import os
import sys

from girder_compose.environment import Site
from girder_compose.errors import SetupError
from girder_compose.health import check_queue

_QUEUE = "celery"


def main(arguments: list[str]) -> int:
    """Does one thing; 1 if a person has to mend something first, which is then said on standard error."""
    actions = {"worker": start_worker, "health": check_worker}
    if len(arguments) != 1 or arguments[0] not in actions:
        print(f"usage: girder_cluster {'|'.join(actions)}", file=sys.stderr)
        return 2
    try:
        actions[arguments[0]](Site.here())
    except SetupError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


def start_worker(site: Site) -> None:
    """Becomes the worker, which finds the broker where the server finds it."""
    broker, backend = site.broker_urls()
    environment = {name: value for name, value in os.environ.items() if value}
    environment |= {"GIRDER_WORKER_BROKER": broker, "GIRDER_WORKER_BACKEND": backend}
    argv = ["girder-slurm", "worker"]
    os.execvpe(argv[0], argv, environment)


def check_worker(site: Site) -> None:
    """Returns if somebody takes tasks from the queue of the analyses; raises SetupError if not."""
    check_queue(site, _QUEUE, "worker")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
