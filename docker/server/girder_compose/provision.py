"""Sets Girder up as a file says. Doing it again changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pymongo
import pymongo.errors

from .errors import LoginRefused, SetupError
from .girder_api import GirderApi
from .provision_file import Wanted, full_name, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .environment import Site

TASK_FOLDER = "slicer_cli_web.task_folder"
_INGEST = "Pulling and ingesting Slicer CLI Web docker tasks"
_WAITING_OR_AT_WORK = (0, 1, 2)


def provision(file: Path, site: Site) -> None:
    """Makes what is missing and says what it made.

    Raises:
        SetupError: the file cannot be used, a login is refused, or Girder refuses something.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(
            f"PROVISION_YAML in .env names a file that cannot be read: {error.strerror}."
        ) from error
    wanted = parse(text, "The provisioning file")
    api = GirderApi()
    changes = [*_administrator(api, wanted, site), *_changes(api, wanted)]
    print("\n".join(changes) if changes else "All is there, nothing was changed.")


def _administrator(api: GirderApi, wanted: Wanted, site: Site) -> Iterator[str]:
    login, password = (
        site.environment.get("GIRDER_ADMIN_LOGIN") or "admin",
        site.secret("girder_admin_password"),
    )
    if api.log_in(login, password):
        return
    known = _logins(site)
    if login in known:
        raise LoginRefused(
            f"Girder refuses the user `{login}` with GIRDER_ADMIN_PASSWORD of .env. That variable sets the password of a new Girder only: "
            f"write into .env what `{login}` uses now, or change it in Girder."
        )
    if known:
        raise LoginRefused(
            f"Girder has users, but none called `{login}`: set GIRDER_ADMIN_LOGIN in .env to an administrator of this Girder."
        )
    names = {
        "firstName": wanted.admin["first_name"],
        "lastName": wanted.admin["last_name"],
        "email": wanted.admin["email"],
    }
    # Girder makes its first user an administrator.
    api.call("POST", "user", login=login, password=password, **names)
    if not api.log_in(login, password):
        raise SetupError(f"Girder has the new administrator `{login}` but does not let it in.")
    yield f"made the administrator {login}"


def _logins(site: Site) -> set[str]:
    """All users, from the database: Girder itself tells them to those who are logged in only."""
    try:
        with pymongo.MongoClient[dict[str, Any]](site.mongo_uri(), serverSelectionTimeoutMS=20000) as client:
            return {user["login"] for user in client.get_default_database().user.find({}, {"login": 1})}
    except pymongo.errors.PyMongoError as error:
        raise SetupError(f"MongoDB does not tell Girder's users: {error}") from error


def _changes(api: GirderApi, wanted: Wanted) -> Iterator[str]:
    if wanted.assetstore is not None:
        yield from _assetstore(api, **wanted.assetstore)
    if wanted.task_folder is not None:
        yield from _task_folder(api, **wanted.task_folder)
    for key, value in wanted.settings.items():
        yield from _setting(api, key, value)
    yield from _images(api, wanted.images)


def _assetstore(api: GirderApi, name: str, directory: str) -> Iterator[str]:
    if any(store.get("root") == directory for store in api.call("GET", "assetstore", limit=0)):
        return
    api.call("POST", "assetstore", name=name, type=0, root=directory)
    yield f"made the assetstore {name} in {directory}"


def _task_folder(api: GirderApi, collection: str, folder: str, public: bool = True) -> Iterator[str]:
    visible = "true" if public else "false"
    parent = _find(api.call("GET", "collection", limit=0), collection)
    if parent is None:
        parent = api.call("POST", "collection", name=collection, public=visible)
        yield f"made the collection {collection}"
    found = _find(api.call("GET", "folder", parentType="collection", parentId=parent["_id"], limit=0), folder)
    if found is None:
        found = api.call(
            "POST", "folder", parentType="collection", parentId=parent["_id"], name=folder, public=visible
        )
        yield f"made the folder {collection}/{folder}"
    yield from _setting(api, TASK_FOLDER, found["_id"])


def _find(documents: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((document for document in documents if document["name"] == name), None)


def _setting(api: GirderApi, key: str, value: Any) -> Iterator[str]:
    if api.setting(key) == value:
        return
    api.change_setting(key, value)
    yield f"set {key} to {json.dumps(value)}"


def _images(api: GirderApi, images: tuple[str, ...]) -> Iterator[str]:
    if not images:
        return
    there = {
        f"{image}{'@' if tag.startswith('sha256:') else ':'}{tag}"
        for image, tags in api.call("GET", "slicer_cli_web/docker_image").items()
        for tag in tags
    }
    missing = [image for image in images if image not in there | _being_ingested(api)]
    if missing:
        api.call("PUT", "slicer_cli_web/docker_image", name=json.dumps(missing))
        yield f"asked the worker to ingest {', '.join(missing)}: it does when it runs"


def _being_ingested(api: GirderApi) -> set[str]:
    """Images that a job waits to ingest, or is just ingesting."""
    jobs = api.call("GET", "job/all", statuses=json.dumps(_WAITING_OR_AT_WORK), limit=0)
    found = set()
    for job in jobs:
        if job["title"] == _INGEST:
            names = api.call("GET", f"job/{job['_id']}")["kwargs"].get("name_list") or []
            found |= {full_name(name) for name in names}
    return found
