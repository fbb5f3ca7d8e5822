"""Girder, when the settings say where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from girder_worker_slurm.doctor.finding import fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from girder_worker_slurm.doctor.finding import Finding

CHECK = "Girder"


def check_girder(api_url: str, *, timeout_seconds: float) -> Iterator[Finding]:
    """Asks Girder for its version."""
    if not api_url:
        yield ok(CHECK, "`api_url` in [girder] is not set: the address in each task is used.")
        return
    import requests  # noqa: PLC0415 - slow to import

    try:
        response = requests.get(f"{api_url.rstrip('/')}/system/version", timeout=timeout_seconds)
    except (requests.RequestException, ValueError) as error:
        yield fail(
            CHECK,
            f"{api_url} does not answer ({type(error).__name__}).",
            "Correct `api_url` in [girder] (it ends in /api/v1), or open the way from this machine to Girder.",
        )
        return
    try:
        answer = response.json()
    except ValueError:
        answer = None
    yield from judge_version(api_url, response.status_code, answer)
    if has_plugin(api_url, timeout_seconds=timeout_seconds):
        yield ok(
            CHECK, "It has the plugin worker_slurm: its settings count for jobs, and it tells whose they are."
        )


def judge_version(api_url: str, status: int, answer: Any) -> Iterator[Finding]:
    """What the answer to `GET system/version` means."""
    version = answer.get("release") or answer.get("apiVersion") if isinstance(answer, dict) else None
    if status != 200 or not version:
        yield fail(
            CHECK,
            f"{api_url} answers {status} and is not Girder's API.",
            "Set `api_url` in [girder] to the address that ends in /api/v1.",
        )
    elif str(version).split(".")[0] != "5":
        yield warn(CHECK, f"{api_url} is Girder {version}.", "Use Girder 5; other versions were never tried.")
    else:
        yield ok(CHECK, f"{api_url} is Girder {version}.")


def has_plugin(api_url: str, *, timeout_seconds: float) -> bool | None:
    """Whether this Girder has our plugin; None if it does not answer.

    No token is needed for that: the plugin refuses who has none, a Girder without it knows no such address.
    """
    import requests  # noqa: PLC0415 - slow to import

    from girder_worker_slurm.girder.server_plugin import PATH  # noqa: PLC0415 - the same

    try:
        response = requests.get(f"{api_url.rstrip('/')}/{PATH}", timeout=timeout_seconds)
    except (requests.RequestException, ValueError):
        return None
    return {200: True, 401: True, 403: True, 404: False}.get(response.status_code)
