"""Ingest of images: which CLIs an image has, registered in Girder. No Docker engine is needed."""

from __future__ import annotations

import json
import shutil
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_client import HttpError

from girder_worker_singularity.errors import ContainerError
from girder_worker_singularity.run.cli_contract import list_clis, run_on_this_host
from girder_worker_slurm.errors import NotSupported
from girder_worker_slurm.girder.inputs import pull_policy
from girder_worker_slurm.girder.transfer_client import TransferClient
from girder_worker_slurm.records.record import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from girder_worker_singularity.command_runner import CommandRunner
    from girder_worker_singularity.run.cli_contract import CliDescription
    from girder_worker_singularity.sif.store import Sif, SifStore
    from girder_worker_slurm.celery_worker.message import DecodedTask


def ingest_images(
    decoded: DecodedTask,
    *,
    api_url: str,
    images: SifStore,
    runner: CommandRunner,
    apptainer: str,
    jobs_root: Path,
    check: Callable[[], None],
    say: Callable[[str], None],
) -> list[str]:
    """Ingests all images of the task; returns those that failed, each of which `say` has explained.

    One failing image does not fail the others. Raises NotSupported, GirderUnreachable, JobCancelled.
    """
    task = _arguments(decoded)
    client = TransferClient(api_url or task["api_url"], task["token"], check)
    failed = []
    for name in task["names"]:
        check()
        say(f"{name}: fetching the image")
        try:
            sif = images.ensure(
                name, policy="always" if task["pull"] else "if-not-present", should_stop=_stops(check)
            )
            clis = _describe(sif, runner, apptainer, jobs_root / "tmp")
            register(client, task["folder_id"], name, sif, clis)
            _keep_descriptions(jobs_root, sif.path.name, clis)
        except ContainerError as error:
            check()
            say(f"{name}: {error}")
            failed.append(name)
        except HttpError as error:
            say(f"{name}: Girder refused it ({error.status}): {error.responseText}")
            failed.append(name)
        else:
            say(
                f"{name}: {len(clis)} CLI{'s' if len(clis) != 1 else ''} registered: {', '.join(cli.name for cli in clis)}"
            )
    return failed


def register(client: Any, folder_id: str, image: str, sif: Sif, clis: Sequence[CliDescription]) -> None:
    """Creates or replaces the folders and items that Girder keeps of an image."""
    repository, tag = _split(image)
    labels = {key.replace(".", "_"): value for key, value in sif.config.labels.items()}
    description = labels.pop("description", "Slicer CLI generated docker image tag folder")
    image_folder = client.post(
        "folder",
        parameters={
            "name": repository,
            "parentId": folder_id,
            "reuseExisting": True,
            "description": "Slicer CLI generated docker image folder",
            "metadata": json.dumps({"slicerCLIType": "image"}),
        },
    )
    tag_folder = client.post(
        "folder",
        parameters={
            "name": tag,
            "parentId": image_folder["_id"],
            "reuseExisting": True,
            "description": description,
            "metadata": json.dumps({**labels, "digest": _digest(repository, sif), "slicerCLIType": "tag"}),
        },
    )
    for cli in clis:
        # Replaces an item of that name, so that doing it again after a crash changes nothing.
        item = client.post(
            "slicer_cli_web/cli",
            data={
                "folder": tag_folder["_id"],
                "name": cli.name,
                "image": image,
                "replace": True,
                "desc_type": cli.desc_type,
                "spec": b64encode(cli.description.encode()),
            },
        )
        params = cli.spec.get("docker-params")
        if params and isinstance(item, dict) and item.get("_id"):
            # Girder's own route leaves them out.
            client.put(f"item/{item['_id']}/metadata", json={"docker-params": params})


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


def _arguments(decoded: DecodedTask) -> dict[str, Any]:
    values = {
        **dict(zip(("name_list", "token", "folder_id", "pull"), decoded.args, strict=False)),
        **decoded.kwargs,
    }
    api_url = getattr(decoded.context, "apiUrl", None) or getattr(decoded.context, "girder_api_url", None)
    names = values.get("name_list")
    if not isinstance(names, list) or not values.get("token") or not values.get("folder_id") or not api_url:
        msg = "The ingest task does not say which images to register where."
        raise NotSupported(msg)
    return {
        "names": [str(name) for name in names],
        "token": str(values["token"]),
        "folder_id": str(values["folder_id"]),
        # A form's "false" is text, and true as such.
        "pull": values.get("pull") not in (None, False) and pull_policy(values["pull"]) == "always",
        "api_url": str(api_url),
    }


def _describe(sif: Sif, runner: CommandRunner, apptainer: str, scratch: Path) -> list[CliDescription]:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="ingest-", dir=scratch))
    try:
        return list_clis(
            sif,
            lambda arguments: run_on_this_host(
                sif, arguments, runner=runner, scratch=place, apptainer=apptainer
            ),
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


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
