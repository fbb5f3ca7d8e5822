"""Run Docker images without Docker: image → SIF file → the command line of Apptainer.

This package knows containers and no cluster. `SifStore` finds or makes the SIF of an image, `ContainerSpec` says how
a container is started, `container_argv` and `container_arguments` turn that into arguments, `list_clis` asks an image
for its Slicer CLIs.
"""

from __future__ import annotations

from girder_worker_singularity.clock import Clock, SystemClock
from girder_worker_singularity.command_runner import (
    CommandError,
    CommandNotFound,
    CommandResult,
    CommandRunner,
    CommandStopped,
    CommandTimeout,
    LocalCommandRunner,
)
from girder_worker_singularity.errors import ContainerError
from girder_worker_singularity.holder import Holder
from girder_worker_singularity.image.config import ImageConfig, image_config
from girder_worker_singularity.image.reference import ImageReference, parse_image_reference
from girder_worker_singularity.lease import Lease, LeaseHeld, LeaseLost, LeaseWatch, Standing
from girder_worker_singularity.run.cli_contract import CliDescription, list_clis, run_on_this_host
from girder_worker_singularity.run.container import (
    ContainerSpec,
    container_arguments,
    container_argv,
    container_environment,
    environment_file_text,
)
from girder_worker_singularity.run.mounts import Mount, mount_argument, mounts_from_docker_volumes
from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.file import SifContents, read_sif
from girder_worker_singularity.sif.shelf import Sif
from girder_worker_singularity.sif.store import SifStore, StoreOptions

__all__ = [
    "CliDescription",
    "Clock",
    "CommandError",
    "CommandNotFound",
    "CommandResult",
    "CommandRunner",
    "CommandStopped",
    "CommandTimeout",
    "ContainerError",
    "ContainerSpec",
    "ConvertOptions",
    "Holder",
    "ImageConfig",
    "ImageReference",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "LeaseWatch",
    "LocalCommandRunner",
    "Mount",
    "Sif",
    "SifContents",
    "SifStore",
    "Standing",
    "StoreOptions",
    "SystemClock",
    "container_arguments",
    "container_argv",
    "container_environment",
    "environment_file_text",
    "image_config",
    "list_clis",
    "mount_argument",
    "mounts_from_docker_volumes",
    "parse_image_reference",
    "read_sif",
    "run_on_this_host",
]
