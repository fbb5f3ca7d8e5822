"""Ingest of images: which CLIs an image has, registered in Girder. No Docker engine is needed."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_client import HttpError

from girder_worker_singularity.command_runner import CommandStopped
from girder_worker_singularity.errors import ContainerError
from girder_worker_singularity.run.cli_contract import list_clis, run_on_this_host
from girder_worker_singularity.run.image_rules import ImageRule, rule_for
from girder_worker_singularity.sif.progress import conversion_phase
from girder_worker_singularity.sif.use import note_use
from girder_worker_singularity.tree import remove_tree
from girder_worker_slurm.errors import GirderUnreachable, NotSupported, Unreachable
from girder_worker_slurm.girder.inputs import pull_policy
from girder_worker_slurm.girder.transfer_client import TransferClient
from girder_worker_slurm.records.record import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from girder_worker_singularity.clock import Clock
    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.run.cli_contract import CliDescription
    from girder_worker_singularity.sif.shelf import Sif
    from girder_worker_singularity.sif.store import Policy, SifStore
    from girder_worker_slurm.celery_worker.message import DecodedTask

_PARALLEL_IMAGES = 2
_SHOWN_CHARACTERS = 1000


@dataclass(frozen=True)
class IngestNews:
    """What Girder's job shows while images are ingested."""

    line: str
    """For the log; empty if there is nothing new for it."""
    progress: float
    """Images done of all images, 0 to 1."""
    message: str
    """How many are done, which are under way, and how far those are."""


def ingest_images(
    decoded: DecodedTask,
    *,
    api_url: str,
    images: SifStore,
    runner: CommandRunner,
    clock: Clock,
    apptainer: str,
    image_rules: Mapping[str, ImageRule],
    jobs_root: Path,
    check: Callable[[], None],
    say: Callable[[IngestNews], None],
) -> list[str]:
    """Ingests all images of the task, two at a time; returns those that failed, each of which `say` has explained.

    One failing image does not fail the others; `say` is called by one thread at a time. Raises NotSupported,
    GirderUnreachable, JobCancelled.
    """
    task = _arguments(decoded)
    client = TransferClient(api_url or task.api_url, task.token, check)
    told = _Telling(say, len(task.names))
    registering = threading.Lock()

    def ingest(name: str) -> bool:
        check()
        told.begins(name)
        try:
            policy: Policy = "always" if task.pull else "if-not-present"
            sif = images.ensure(
                name,
                policy=policy,
                on_progress=lambda line: told.goes_on(name, line),
                should_stop=_stops(check),
            )
            told.goes_on(name, "", phase="asking for its CLIs")
            note_use(sif.path, clock)
            clis = _describe(
                sif, runner, apptainer, rule_for(image_rules, name), jobs_root / "tmp", _stops(check)
            )
            # Two tags of one image would both make the folder that they share.
            with registering:
                gone = register(client, task.folder_id, name, sif, clis)
            _keep_descriptions(jobs_root, sif.path.name, clis)
        except (ContainerError, CommandStopped) as error:
            check()
            told.ended(name, str(error))
        except HttpError as error:
            told.ended(name, f"Girder refused it ({error.status}): {_shown(error.responseText)}")
        except DescriptionRefused as error:
            told.ended(name, str(error))
        else:
            told.ended(name, _registered(clis, gone))
            return True
        return False

    with ThreadPoolExecutor(_PARALLEL_IMAGES, thread_name_prefix="gw-ingest") as pool:
        results = [pool.submit(ingest, name) for name in task.names]
        try:
            return [name for name, result in zip(task.names, results, strict=True) if not result.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class DescriptionRefused(Exception):
    """Girder failed on the description of a CLI."""


class _Telling:
    """What is said about several images at once, one after the other."""

    def __init__(self, say: Callable[[IngestNews], None], total: int) -> None:
        self._say = say
        self._total = total
        self._done = 0
        self._under_way: dict[str, str] = {}
        self._lock = threading.Lock()

    def begins(self, name: str) -> None:
        with self._lock:
            self._under_way[name] = ""
            self._tell(f"{name}: fetching the image")

    def goes_on(self, name: str, line: str, *, phase: str | None = None) -> None:
        """What Apptainer says of an image under way, or how far it is."""
        phase = phase or conversion_phase(line)
        with self._lock:
            if phase is not None and self._under_way.get(name) not in (None, phase):
                self._under_way[name] = phase
                # The next news comes soon: a Girder that is away for a moment must not end them.
                with contextlib.suppress(Unreachable):
                    self._tell("")

    def ended(self, name: str, how: str) -> None:
        with self._lock:
            self._under_way.pop(name, None)
            self._done += 1
            self._tell(f"{name}: {how}")

    def _tell(self, line: str) -> None:
        names = ", ".join(f"{name} ({phase})" if phase else name for name, phase in self._under_way.items())
        message = f"{self._done} of {self._total} images done" + (f"; now {names}" if names else "")
        self._say(IngestNews(" ".join(line.splitlines()), self._done / self._total, message))


def register(client: Any, folder_id: str, image: str, sif: Sif, clis: Sequence[CliDescription]) -> list[str]:
    """Creates or replaces the folders and items that Girder keeps of an image; returns the CLIs that were removed.

    Those are what an earlier ingest of this image registered and it has no more. Raises DescriptionRefused.
    """
    repository, tag = _split(image)
    labels = labels_for_girder(sif.config.labels)
    description = labels.pop("description", "Slicer CLI generated docker image tag folder")
    image_folder = client.post(
        "folder",
        data={
            "name": repository,
            "parentId": folder_id,
            "reuseExisting": True,
            "description": "Slicer CLI generated docker image folder",
            "metadata": json.dumps({"slicerCLIType": "image"}),
        },
    )
    # In the body: labels may be longer than an address can be.
    tag_folder = client.post(
        "folder",
        data={
            "name": tag,
            "parentId": image_folder["_id"],
            "reuseExisting": True,
            "description": description,
            "metadata": json.dumps({**labels, "digest": _digest(repository, sif), "slicerCLIType": "tag"}),
        },
    )
    for cli in clis:
        _register_cli(client, tag_folder["_id"], image, cli)
    return _remove_gone(client, tag_folder["_id"], image, {cli.name for cli in clis})


def labels_for_girder(labels: Mapping[str, str]) -> dict[str, str]:
    """An image's labels as Girder's database can hold them: names without `.`, `$` in front, and NUL. Pure."""
    stored = {}
    for key, value in labels.items():
        name = _storable(key).replace(".", "_").replace("\0", "_")
        if name:
            stored[f"_{name[1:]}" if name.startswith("$") else name] = _storable(value)
    return stored


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a character


def _register_cli(client: Any, folder_id: str, image: str, cli: CliDescription) -> None:
    try:
        # Replaces an item of that name, so that doing it again after a crash changes nothing.
        item = client.post(
            "slicer_cli_web/cli",
            data={
                "folder": folder_id,
                "name": cli.name,
                "image": image,
                "replace": True,
                "desc_type": cli.desc_type,
                "spec": b64encode(cli.description.encode()),
            },
        )
    except GirderUnreachable as error:
        # Girder's route lets a description that it cannot read end in an internal error: trying again is in vain.
        raise _refusal(error, f"the description of the CLI {cli.name}") from error
    params = cli.spec.get("docker-params") or None
    known = item.get("meta", {}).get("docker-params")
    if params != known:
        # Girder's own route leaves them out; null takes those of an earlier ingest away.
        try:
            client.put(f"item/{item['_id']}/metadata", json={"docker-params": params})
        except GirderUnreachable as error:
            raise _refusal(error, f"the docker-params of the CLI {cli.name}") from error


def _refusal(error: GirderUnreachable, what: str) -> Exception:
    """What to raise for a call that Girder failed on: an internal error is of the data's making, any other passes."""
    answer = error.__cause__
    if not (isinstance(answer, HttpError) and answer.status == 500):
        return error
    return DescriptionRefused(f"Girder failed on {what} (500): {_shown(answer.responseText)}")


def _remove_gone(client: Any, folder_id: str, image: str, names: set[str]) -> list[str]:
    """Girder's own model does so too when it stores an image (`DockerImageItem._syncItems`)."""
    gone = []
    for item in client.get("item", parameters={"folderId": folder_id, "limit": 0}):
        meta = item.get("meta") or {}
        is_cli = meta.get("slicerCLIType") == "task" and meta.get("image", image) == image
        if is_cli and item["name"] not in names:
            client.delete(f"slicer_cli_web/cli/{item['_id']}")
            gone.append(str(item["name"]))
    return gone


def _registered(clis: Sequence[CliDescription], gone: Sequence[str]) -> str:
    names = ", ".join(cli.name for cli in clis)
    removed = f"; no longer there and removed: {', '.join(gone)}" if gone else ""
    return f"{len(clis)} CLI{'s' if len(clis) != 1 else ''} registered: {names}{removed}"


def _shown(text: str) -> str:
    """What Girder said, without the trace and the whole description that may stand in it."""
    try:
        said = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        said = text
    return said if len(said) <= _SHOWN_CHARACTERS else f"{said[:_SHOWN_CHARACTERS]}..."


def read_descriptions(jobs_root: Path, sif_name: str) -> dict[str, str]:
    """The descriptions of an image's CLIs by name, as they were at its last ingest here; empty if there was none."""
    try:
        kept = json.loads((jobs_root / "cli" / f"{sif_name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(text) for name, text in kept.items()} if isinstance(kept, dict) else {}


def _keep_descriptions(jobs_root: Path, sif_name: str, clis: Sequence[CliDescription]) -> None:
    directory = jobs_root / "cli"
    directory.mkdir(mode=0o700, exist_ok=True)
    write_durably(
        directory / f"{sif_name}.json", json.dumps({cli.name: cli.description for cli in clis}), sync=False
    )


@dataclass(frozen=True)
class _IngestTask:
    names: tuple[str, ...]
    token: str
    folder_id: str
    pull: bool
    api_url: str


def _arguments(decoded: DecodedTask) -> _IngestTask:
    values = {
        **dict(zip(("name_list", "token", "folder_id", "pull"), decoded.args, strict=False)),
        **decoded.kwargs,
    }
    api_url = getattr(decoded.context, "apiUrl", None) or getattr(decoded.context, "girder_api_url", None)
    names = values.get("name_list")
    if not isinstance(names, list) or not values.get("token") or not values.get("folder_id") or not api_url:
        msg = "The ingest task does not say which images to register where."
        raise NotSupported(msg)
    return _IngestTask(
        names=tuple(dict.fromkeys(str(name) for name in names)),
        token=str(values["token"]),
        folder_id=str(values["folder_id"]),
        # A form's "false" is text, and true as such.
        pull=values.get("pull") not in (None, False) and pull_policy(values["pull"]) == "always",
        api_url=str(api_url),
    )


def _describe(
    sif: Sif,
    runner: CommandRunner,
    apptainer: str,
    rule: ImageRule,
    scratch: Path,
    should_stop: Callable[[], bool],
) -> list[CliDescription]:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="ingest-", dir=scratch))
    try:
        return list_clis(
            sif,
            lambda arguments: run_on_this_host(
                sif,
                arguments,
                runner=runner,
                scratch=place,
                apptainer=apptainer,
                rule=rule,
                should_stop=should_stop,
            ),
        )
    finally:
        remove_tree(place)


def _split(image: str) -> tuple[str, str]:
    """Name and tag (or digest) as Girder's folders are named."""
    if ":" in image.rsplit("/", 1)[-1] and "@" not in image:
        name, _, tag = image.rpartition(":")
        return name, tag
    name, separator, digest = image.rpartition("@")
    return (name, digest) if separator else (image, "latest")


def _digest(repository: str, sif: Sif) -> str | None:
    """The reference that runs will name: only with a digest that a registry knows."""
    return f"{repository}@{sif.digest}" if sif.digest else None


def _stops(check: Callable[[], None]) -> Callable[[], bool]:
    def should_stop() -> bool:
        try:
            check()
        except Exception:  # noqa: BLE001 - whatever it raises means stop; the caller checks again and raises it
            return True
        return False

    return should_stop
