"""Which Python objects a message may become here: a short list of classes and of plain data, and nothing that runs code.

Girder Worker decodes each JSON message with jsonpickle, which imports what a message names, and calls it (`py/reduce`,
`py/type`, `py/newargs`, ...). Whoever can publish to the broker could so run code in the worker, which has the tokens of all
jobs. So this worker decodes with a decoder of its own (`object_decoder.py`). Pickle and YAML are not accepted at all.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from girder_worker_slurm.celery_worker.object_decoder import decode_text, decode_value

if TYPE_CHECKING:
    from collections.abc import Collection

_DOCKER = "girder_worker.docker.transforms"
_GIRDER_IO = "girder_worker.utils.transforms.girder_io"
_SLICER_CLI = "slicer_cli_web.girder_worker_plugin.direct_docker_run"
STOCK_CLASSES = frozenset(
    {
        *(
            f"{_DOCKER}.{name}"
            for name in (
                "BindMountVolume",
                "ChunkedTransferEncodingStream",
                "Connect",
                "ContainerStdErr",
                "ContainerStdOut",
                "HostStdErr",
                "HostStdOut",
                "NamedInputPipe",
                "NamedOutputPipe",
                "TemporaryVolume",
                "VolumePath",
                "_DefaultTemporaryVolume",
            )
        ),
        *(
            f"{_DOCKER}.girder.{name}"
            for name in (
                "GirderFileIdToStream",
                "GirderFileIdToVolume",
                "GirderFolderIdToVolume",
                "GirderItemIdToVolume",
                "GirderUploadVolumePathJobArtifact",
                "GirderUploadVolumePathToFolder",
                "GirderUploadVolumePathToItem",
                "ProgressPipe",
            )
        ),
        *(
            f"{_GIRDER_IO}.{name}"
            for name in ("GirderUploadJobArtifact", "GirderUploadToFolder", "GirderUploadToItem")
        ),
        *(
            f"{_SLICER_CLI}.{name}"
            for name in ("CommaJoinedVolumes", "DirectGirderFileIdToVolume", "GirderApiUrl", "GirderToken")
        ),
    }
)
"""The transforms and result hooks of Girder Worker and Slicer CLI Web 5.0.21."""

ACCEPTED_FORMATS = ("json", "girder_io")
"""What Celery may decode here, by the names of kombu's serializers; the second is registered for JSON as well."""


def admitted_classes(allowed: Collection[str] = ()) -> frozenset[str]:
    """All classes that messages may become objects of, on a site that allows these besides."""
    return STOCK_CLASSES | frozenset(allowed)


def guard_decoding(admitted: Collection[str]) -> None:
    """From here on all that Celery and Girder Worker decode in this process becomes admitted objects only.

    Messages of tasks that Celery runs itself, their result hooks, results of other tasks and commands to workers included.
    """
    # Only a worker has these.
    import girder_worker.app  # noqa: PLC0415
    import jsonpickle  # noqa: PLC0415
    from kombu.serialization import register  # noqa: PLC0415

    def decode(data: str | bytes) -> Any:
        return decode_text(data, admitted)

    def encode(value: Any) -> str:
        return str(jsonpickle.encode(value, keys=True))

    class HookDecoder:
        """In the place of jsonpickle's Unpickler, with which Girder Worker makes result hooks of headers."""

        def restore(self, flattened: Any) -> Any:
            return decode_value(flattened, admitted)

    register("girder_io", encode, decode, content_type="application/json", content_encoding="utf-8")
    # girder_worker.app needs nothing else of jsonpickle once its own codec is replaced.
    girder_worker.app.jsonpickle = SimpleNamespace(
        encode=jsonpickle.encode,
        decode=lambda data, **_: decode(data),
        pickler=jsonpickle.pickler,
        unpickler=SimpleNamespace(Unpickler=HookDecoder),
    )
