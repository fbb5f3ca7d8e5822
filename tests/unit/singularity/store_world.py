"""A store of SIFs with a pretended Apptainer, and what registry and engine answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from girder_worker_singularity.sif.convert import ConvertOptions
from girder_worker_singularity.sif.store import SifStore, StoreOptions
from girder_worker_singularity.testing import FakeClock
from tests.support.sif_files import FakeApptainer, sif_bytes

if TYPE_CHECKING:
    from girder_worker_singularity.source.docker_engine import EngineImage

IMAGE = "team/tool:1"
DIGEST, OTHER_DIGEST = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class World:
    """A store, the Apptainer it uses, and what registry and engine answer."""

    def __init__(self, root, tmp_dir):
        self.root = root
        self.apptainer = FakeApptainer()
        self.clock = FakeClock()
        self.registry: dict[str, str] = {}
        self.engine: dict[str, EngineImage] = {}
        self.asked: list[str] = []
        self.tmp_dir = tmp_dir

    def store(self, **options) -> SifStore:
        convert = ConvertOptions(tmp_dir=self.tmp_dir)
        return SifStore(
            self.root,
            self.apptainer.runner(),
            self.clock,
            StoreOptions(convert, **{"minimum_free_bytes": 0, **options}),
            ask_registry=self.ask_registry,
            ask_engine=self.ask_engine,
        )

    def ask_registry(self, reference, _access):
        self.asked.append(str(reference))
        return self.registry.get(str(reference))

    def ask_engine(self, reference):
        self.asked.append(str(reference))
        return self.engine.get(str(reference))

    def names(self) -> list[str]:
        return [name for name in names(self.root) if name != ".leases"]

    def put(self, name, content=None) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / name).write_bytes(sif_bytes(definition="") if content is None else content)
