"""Inputs of a task, brought into the run directory by the stock transforms.

The transforms of Girder Worker do the work. What is changed about them: every file input gets a directory of
its own in the volume, so that two inputs, or an input and an output, may have the same name; a file that the
cluster sees directly is mounted read-only instead of downloaded; addresses and connections are ours.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_client import HttpError

from girder_worker_singularity.run.docker_options import NO_WISHES, ResourceWishes, docker_options
from girder_worker_singularity.run.mounts import Mount, merge_mounts, mounts_from_docker_volumes
from girder_worker_slurm.errors import InputUnavailable, NotSupported
from girder_worker_slurm.girder.transfer_client import TransferClient
from girder_worker_slurm.options.arguments import split_slurm_arguments
from girder_worker_slurm.options.layers import choose
from girder_worker_slurm.options.pseudo_devices import split_devices
from girder_worker_slurm.options.requests import OptionRules, task_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from girder_worker_slurm.celery_worker.message import DecodedTask

#: Where Girder Worker mounts volumes and directly read files in the container.
VOLUME_PREFIX = "/mnt/girder_worker"
DIRECT_PREFIX = "/mnt/girder_direct_worker"
#: Directory of the inputs in a task's volume.
INPUTS = "inputs"
#: Where a record keeps its task once the inputs are there.
TASK_FILE = "task.json"


@dataclass(frozen=True)
class StagedTask:
    """A container task with everything that was a Girder reference turned into paths and text."""

    image: str
    pull_policy: str
    arguments: tuple[str, ...]
    mounts: tuple[Mount, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] | None = None
    working_dir: str | None = None
    hostname: str | None = None
    without_network: bool = False
    #: As Docker has it: name or number, maybe `:group`.
    user: str | None = None
    read_only: bool = False
    scratch_mounts: tuple[str, ...] = ()
    #: What Docker's limits and device requests mean for the job.
    wishes: ResourceWishes = NO_WISHES
    #: Docker options that have no counterpart here.
    ignored_options: tuple[str, ...] = ()
    #: sbatch options of the CLI's docker-params, as they stand there.
    slurm_parameters: Mapping[str, Any] = field(default_factory=dict)
    #: sbatch options of the CLI's own arguments, which are not among `arguments` any more.
    slurm_arguments: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The task as the record keeps it."""
        return {
            "image": self.image,
            "pull_policy": self.pull_policy,
            "arguments": list(self.arguments),
            "mounts": [[mount.source, mount.destination, mount.read_only] for mount in self.mounts],
            "environment": dict(self.environment),
            "entrypoint": None if self.entrypoint is None else list(self.entrypoint),
            "working_dir": self.working_dir,
            "hostname": self.hostname,
            "without_network": self.without_network,
            "user": self.user,
            "read_only": self.read_only,
            "scratch_mounts": list(self.scratch_mounts),
            "wishes": asdict(self.wishes),
            "ignored_options": list(self.ignored_options),
            "slurm_parameters": dict(self.slurm_parameters),
            "slurm_arguments": [list(pair) for pair in self.slurm_arguments],
        }

    @classmethod
    def of_record(cls, record: Path) -> StagedTask | None:
        """The task that a record keeps; None if it keeps none that can be read."""
        try:
            return cls.from_json(json.loads((record / TASK_FILE).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> StagedTask:
        """The task as `as_json` gives it."""
        entrypoint = stored["entrypoint"]
        return cls(
            image=stored["image"],
            pull_policy=stored["pull_policy"],
            arguments=tuple(stored["arguments"]),
            mounts=tuple(Mount(*mount) for mount in stored["mounts"]),
            environment=stored["environment"],
            entrypoint=None if entrypoint is None else tuple(entrypoint),
            working_dir=stored["working_dir"],
            hostname=stored["hostname"],
            without_network=stored["without_network"],
            # Records of older versions have none of these six.
            user=stored.get("user"),
            read_only=stored.get("read_only", False),
            scratch_mounts=tuple(stored.get("scratch_mounts", ())),
            wishes=ResourceWishes(**stored.get("wishes", {"gpus": int(stored.get("wants_gpu", False))})),
            ignored_options=tuple(stored["ignored_options"]),
            slurm_parameters=stored.get("slurm_parameters", {}),
            slurm_arguments=tuple((name, value) for name, value in stored.get("slurm_arguments", ())),
        )


@dataclass(frozen=True)
class StagingRules:
    """How this site's worker brings inputs in."""

    #: Address of Girder's API that replaces the one in the task; empty: as in the task.
    api_url: str = ""
    mount_prefix: str = ""
    direct_paths: tuple[str, ...] = ()
    run_options: Mapping[str, Any] = field(default_factory=dict)
    #: What a task may ask of Slurm.
    slurm: OptionRules = field(default_factory=OptionRules)


def image_of(decoded: DecodedTask) -> str:
    """The Docker image a container task names; raises NotSupported when it names none."""
    image = decoded.kwargs.get("image") or (decoded.args[0] if decoded.args else None)
    if not isinstance(image, str) or not image.strip():
        msg = "The task names no Docker image."
        raise NotSupported(msg)
    return image.strip()


@dataclass(frozen=True)
class StagingPlace:
    """Where inputs are brought to, and who is to read them."""

    #: The run directory, as the nodes see it.
    run: Path
    #: The directory that the worker writes to, whose content will be that of `run`; the same, or one of its own.
    place: Path
    #: Whether the job's user can read a file of the cluster.
    can_read: Callable[[Path], bool]

    def in_run(self, mount: Mount) -> Mount:
        """The mount of something below `place`, as the nodes see it."""
        source = Path(mount.source)
        if not source.is_relative_to(self.place):
            return mount
        return replace(mount, source=str(self.run / source.relative_to(self.place)))


def stage(
    decoded: DecodedTask, *, to: StagingPlace, name: str, rules: StagingRules, check: Callable[[], None]
) -> StagedTask:
    """Brings all inputs to `to.place` and returns the task as paths and text.

    `name` is the same for every attempt of a job, so that paths in the container are; `check` is called between
    pieces and raises to stop. Raises InputUnavailable, NotSupported, OptionRefused, GirderUnreachable.
    """
    arguments = dict(decoded.kwargs)
    for index, key in enumerate(
        ("image", "pull_image", "entrypoint", "container_args", "volumes", "remove_container")
    ):
        if index < len(decoded.args):
            arguments[key] = decoded.args[index]
    given_arguments, slurm_arguments = split_slurm_arguments(list(arguments.get("container_args") or ()))
    arguments["container_args"] = list(given_arguments)
    slurm_parameters = arguments.pop("slurm", None) or {}
    if isinstance(devices := arguments.get("devices"), (list, tuple)) and isinstance(slurm_parameters, dict):
        arguments["devices"], said = split_devices(devices)
        slurm_parameters = {**said, **slurm_parameters}
    # What may not be asked for ends the job before anything is fetched.
    choose(task_layers(slurm_parameters, slurm_arguments), rules.slurm.allowed)
    volume = run_volume(to.place, name)
    Path(volume.host_path).mkdir(mode=0o700, exist_ok=True)
    clients = _Clients(rules.api_url, check)
    transforms = [
        value
        for value in walk((arguments.get("container_args"), arguments.get("volumes")))
        if _is_transform(value)
    ]
    for value in transforms:
        clients.attach(value)
        _check_names(value)
    direct = _mount_direct_files(transforms, rules, to.can_read)
    _separate_files(transforms, volume, to.place)
    apply = _Transformer(volume, check)
    given = arguments.get("volumes") or {}
    mounts = _volumes(given, apply)
    values = apply(list(arguments.get("container_args") or ()))
    if arguments.get("stream_connectors") or any(_is_stream(value) for value in values):
        msg = "The task streams data through pipes between worker and container; on a cluster they are on different machines."
        raise NotSupported(msg)
    merged = _with_site_options(arguments, rules.run_options)
    mounts += mounts_from_docker_volumes(merged.pop("site_volumes", {}))
    options = docker_options({key: value for key, value in merged.items() if key != "volumes"})
    mounts = [to.in_run(mount) for mount in mounts]
    own = Mount(str(to.run / "volume"), volume.container_path, read_only=False)
    return StagedTask(
        image=image_of(decoded),
        pull_policy=pull_policy(arguments.get("pull_image", True)),
        arguments=tuple(str(value) for value in values),
        mounts=tuple(merge_mounts((own, *mounts, *options.mounts, *direct))),
        environment=options.environment,
        entrypoint=options.entrypoint,
        working_dir=options.working_dir,
        hostname=options.hostname,
        without_network=options.without_network,
        user=options.user,
        read_only=options.read_only,
        scratch_mounts=options.scratch_mounts,
        wishes=options.wishes,
        ignored_options=options.ignored,
        slurm_parameters=slurm_parameters,
        slurm_arguments=slurm_arguments,
    )


def pull_policy(pull_image: object) -> str:
    """Docker's pull wish in our words: `always` or `if-not-present`."""
    if pull_image is True or str(pull_image).lower() in ("true", "always", "1"):
        return "always"
    return "if-not-present"


def run_volume(run: Path, name: str) -> Any:
    """The default temporary volume of a task, at paths that a restarted worker finds again."""
    from girder_worker.docker.transforms import BindMountVolume  # noqa: PLC0415 - loads Celery

    volume = BindMountVolume(str(run / "volume"), f"{VOLUME_PREFIX}/{name}")
    volume._transformed = True  # noqa: SLF001 - what DockerTask's own volume has
    return volume


def attach_clients(objects: Sequence[Any], api_url: str, check: Callable[[], None]) -> list[TransferClient]:
    """Replaces the Girder clients inside transforms and hooks by ours; returns those used."""
    clients = _Clients(api_url, check)
    for value in walk(objects):
        clients.attach(value)
    return clients.used()


def tokens_of(objects: Sequence[Any]) -> tuple[str, ...]:
    """The tokens in the Girder clients of transforms and hooks."""
    tokens = (getattr(getattr(value, "gc", None), "token", None) for value in walk(objects))
    return tuple(dict.fromkeys(str(token) for token in tokens if token))


def walk(value: Any) -> Iterator[Any]:
    """All leaves of nested lists, tuples and dicts, and the transforms inside a transform."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from walk(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from walk(entry)
    elif value is not None:
        yield value
        yield from walk(list(getattr(value, "_volumes", ()) or ()))


def _check_names(value: Any) -> None:
    """Raises NotSupported for an input whose name would lead out of its directory: Girder allows any name."""
    name = getattr(value, "_filename", None) or getattr(value, "_folder_name", None)
    if name is None and type(value).__name__ == "GirderFileIdToVolume":
        name = _fetched(value.gc.getFile, value._file_id)["name"]  # noqa: SLF001 - stock attribute
        value._filename = name  # noqa: SLF001
    elif name is None and type(value).__name__ == "GirderFolderIdToVolume":
        name = _fetched(value.gc.getFolder, value._folder_id)["name"]  # noqa: SLF001
        value._folder_name = name  # noqa: SLF001
    if isinstance(name, str) and ("/" in name or "\0" in name or name in ("", ".", "..")):
        msg = f"An input is named {name!r} in Girder, which cannot be the name of a file. Rename it."
        raise NotSupported(msg)


def _fetched(get: Callable[[str], Any], identifier: str) -> Any:
    try:
        return get(identifier)
    except HttpError as error:
        msg = f"An input could not be fetched from Girder ({error.status}): {_words_of(error)}"
        raise InputUnavailable(msg) from error


class _Clients:
    """One client of ours for each address and token."""

    def __init__(self, api_url: str, check: Callable[[], None]) -> None:
        self._api_url = api_url
        self._check = check
        self._made: dict[tuple[str, str], TransferClient] = {}

    def attach(self, value: Any) -> None:
        theirs = getattr(value, "gc", None)
        if theirs is None or not hasattr(theirs, "urlBase"):
            return
        key = (self._api_url or theirs.urlBase, str(theirs.token))
        if key not in self._made:
            self._made[key] = TransferClient(*key, self._check)
        value.gc = self._made[key]

    def used(self) -> list[TransferClient]:
        return list(self._made.values())


class _Transformer:
    """Runs stock transforms and translates what they raise."""

    def __init__(self, volume: Any, check: Callable[[], None]) -> None:
        self._volume = volume
        self._check = check

    def __call__(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(entry) for entry in value]
        if not _is_transform(value):
            return value
        self._check()
        if type(value).__name__ in ("ProgressPipe", "Connect", "NamedInputPipe", "NamedOutputPipe"):
            msg = f"The task uses {type(value).__name__}, a pipe between worker and container; on a cluster they are on different machines."
            raise NotSupported(msg)
        try:
            return value.transform(task=None, _default_temp_volume=self._volume)
        except HttpError as error:
            msg = f"An input could not be fetched from Girder ({error.status}): {_words_of(error)}"
            raise InputUnavailable(msg) from error
        except TypeError as error:
            msg = f"{type(value).__name__} cannot be used with a container task: {error}."
            raise NotSupported(msg) from error


class _SubVolume:
    """A directory of the run's volume, for one input."""

    def __init__(self, volume: Any, name: str) -> None:
        self.host_path = f"{volume.host_path}/{name}"
        self.container_path = f"{volume.container_path}/{name}"

    def transform(self, *_: Any, **__: Any) -> str:
        Path(self.host_path).mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.container_path


def _is_transform(value: Any) -> bool:
    return callable(getattr(value, "transform", None))


def _is_stream(value: Any) -> bool:
    return type(value).__module__.startswith("girder_worker.docker.io")


def _separate_files(transforms: Sequence[Any], volume: Any, place: Path) -> None:
    """Gives each file, item or folder input a directory of its own, and every temporary volume its place here."""
    number = 0
    for value in transforms:
        chosen = getattr(value, "_volume", None)
        if hasattr(value, "gc") and type(chosen).__name__ == "_DefaultTemporaryVolume":
            value._volume = _SubVolume(volume, f"{INPUTS}/{number}")  # noqa: SLF001 - the transform's own attribute
            number += 1
        if type(value).__name__ == "TemporaryVolume" and getattr(value, "host_dir", None) is None:
            value.host_dir = str(place / "volumes")


def _mount_direct_files(
    transforms: Sequence[Any], rules: StagingRules, can_read: Callable[[Path], bool]
) -> tuple[Mount, ...]:
    """Mounts for inputs whose file the cluster sees; these transforms then give the path in the container."""
    mounts = []
    for value in transforms:
        path = getattr(value, "_direct_file_path", None)
        if not path or not hasattr(value, "_direct_container_path"):
            continue
        source = _direct_source(str(path), rules)
        if source is None or not can_read(Path(source)):
            continue
        destination = f"{DIRECT_PREFIX}/{value._file_id}/{value._filename}"  # noqa: SLF001 - stock attributes
        value._direct_container_path = destination  # noqa: SLF001
        mounts.append(Mount(source, destination, read_only=True))
    return tuple(mounts)


def _direct_source(path: str, rules: StagingRules) -> str | None:
    source = rules.mount_prefix.rstrip("/") + os.path.abspath(path)  # noqa: PTH100 - no symlink may be resolved
    if rules.direct_paths and not any(_is_below(source, allowed) for allowed in rules.direct_paths):
        return None
    return source


def _is_below(path: str, directory: str) -> bool:
    return Path(directory).is_absolute() and Path(path).is_relative_to(directory)


def _volumes(given: Any, apply: _Transformer) -> list[Mount]:
    """The task's own volumes as mounts."""
    if isinstance(given, list):
        merged: dict[str, Any] = {}
        for volume in given:
            apply(volume)
            if hasattr(volume, "_repr_json_"):
                merged.update(volume._repr_json_())
            else:
                return mounts_from_docker_volumes(given)
        given = merged
    return mounts_from_docker_volumes(given)


def _with_site_options(arguments: Mapping[str, Any], site: Mapping[str, Any]) -> dict[str, Any]:
    """The site's Docker run options below those of the task; the site's volumes apart."""
    merged = {key: value for key, value in site.items() if key not in ("volumes", "tty", "detach")}
    merged.update(arguments)
    volumes = site.get("volumes")
    if isinstance(volumes, list):
        # As stock Girder Worker reads them: without a mode, read-only.
        volumes = [entry if entry.count(":") > 1 else f"{entry}:ro" for entry in volumes]
    if volumes:
        merged["site_volumes"] = volumes
    return merged


def _words_of(error: HttpError) -> str:
    try:
        return str(error.response.json().get("message", ""))
    except (AttributeError, ValueError):
        return str(error.responseText)[:200]
