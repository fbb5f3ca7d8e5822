"""Is a service all right? What is wrong is in `docker inspect`, and docker/check.sh shows it."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import kombu

from .accounts import check_broker
from .errors import SetupError

if TYPE_CHECKING:
    from .environment import Site

VERSION = "http://127.0.0.1:8080/api/v1/system/version"
ASSETSTORE = Path("/assetstore")
LOCAL_QUEUE = "local"


def check_free_space(directory: Path, least_mb: int) -> None:
    """Returns if there is enough space for uploads; raises SetupError if not."""
    free_mb = shutil.disk_usage(directory).free // 10**6
    if free_mb < least_mb:
        raise SetupError(
            f"Only {free_mb} MB are free for Girder's files ({directory}), less than MIN_FREE_MB ({least_mb}). "
            "Make room on the disk of ASSETSTORE_DATA, or of Docker's volumes, before uploads fail."
        )


def check_girder(site: Site) -> None:
    """Returns if Girder answers and has space for files; raises SetupError if not."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(VERSION, timeout=8).close()
    except (urllib.error.URLError, OSError) as error:
        raise SetupError(f"Girder does not answer: {error}") from error
    text = site.environment.get("MIN_FREE_MB") or "1000"
    if not text.isdecimal():
        raise SetupError(f"MIN_FREE_MB has to be a number of megabytes, not `{text}`.")
    check_free_space(ASSETSTORE, int(text))


def check_local_worker(site: Site) -> None:
    """Returns if somebody takes tasks from Girder's own queue; raises SetupError if not."""
    check_queue(site, LOCAL_QUEUE, "local worker")


def check_queue(site: Site, queue: str, worker: str) -> None:
    """Returns if somebody takes tasks from this queue; raises SetupError, which names the worker, if not."""
    url, _ = site.broker_urls()
    check_broker(url)
    with kombu.Connection(url, connect_timeout=8) as connection:
        channel = connection.channel()
        try:
            found = channel.queue_declare(queue, passive=True)
        except connection.channel_errors as error:
            raise SetupError(f"The {worker} has not made its queue yet.") from error
        if not found.consumer_count:
            raise SetupError(f"Nobody takes tasks from the queue `{queue}`.")
