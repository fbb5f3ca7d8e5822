"""Who waits for which image. Each is made once, however many jobs wait for it."""

from __future__ import annotations

import contextlib
import queue
from typing import TYPE_CHECKING, Any

from girder_worker_singularity.errors import ConversionStopped
from girder_worker_singularity.sif.progress import conversion_phase

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from girder_worker_singularity.sif.shelf import Sif
    from girder_worker_singularity.sif.store import SifStore
    from girder_worker_slurm.job.live_job import LiveJob

_Key = tuple[str, str]


class ImageDesk:
    """Keeps jobs until their image is there. All methods belong to the supervising thread."""

    def __init__(
        self,
        images: SifStore,
        stopping: threading.Event,
        *,
        begin: Callable[..., None],
        wake: Callable[[], None],
    ) -> None:
        self._images = images
        self._stopping = stopping
        self._begin = begin
        self._wake = wake
        self._news: queue.SimpleQueue[tuple[_Key, str]] = queue.SimpleQueue()
        self._waiting: dict[_Key, list[LiveJob]] = {}
        self._made: queue.SimpleQueue[tuple[_Key, Sif | None, BaseException | None]] = queue.SimpleQueue()

    @property
    def has_served(self) -> bool:
        """Whether an image was made, or failed, since the last look."""
        return not self._made.empty()

    def wait(self, job: LiveJob, image: str, policy: str) -> None:
        """Parks a job; the first one for an image has it made."""
        job.is_parked = True
        jobs = self._waiting.setdefault((image, policy), [])
        jobs.append(job)
        job.image_phase = f"Waiting for the image {image}"
        if len(jobs) == 1:
            self._begin(self._make, (image, policy), user=job.user)

    def leave(self, job: LiveJob) -> None:
        """Lets a job go on without its image; a conversion that nobody waits for any more is stopped."""
        job.is_parked = False
        for jobs in self._waiting.values():
            if job in jobs:
                jobs.remove(job)

    def spread_news(self) -> None:
        """Tells the jobs that wait how far their image is."""
        news: dict[_Key, str] = {}
        with contextlib.suppress(queue.Empty):
            while True:
                key, phase = self._news.get_nowait()
                news[key] = phase
        for key, phase in news.items():
            for job in self._waiting.get(key, ()):
                job.image_phase = phase

    def served(self) -> Iterator[tuple[LiveJob, BaseException | None]]:
        """The jobs whose image is made or cannot be made, with the error if there is one."""
        with contextlib.suppress(queue.Empty):
            while True:
                key, sif, error = self._made.get_nowait()
                for job in self._waiting.pop(key, []):
                    job.sif = sif
                    job.is_parked = False
                    # Stopped because nobody waited; who came since asks again.
                    yield job, None if isinstance(error, ConversionStopped) else error

    def _make(self, key: _Key) -> None:
        image, policy = key
        sif: Any = None
        error: BaseException | None = None
        try:
            sif = self._images.ensure(
                image,
                policy="always" if policy == "always" else "if-not-present",
                on_progress=lambda line: self._note(key, line),
                should_stop=lambda: self._stopping.is_set() or not self._is_wanted(key),
            )
        except BaseException as caught:  # noqa: BLE001 - handed to every job that waits
            error = caught
        self._made.put((key, sif, error))
        self._wake()

    def _note(self, key: _Key, line: str) -> None:
        phase = conversion_phase(line)
        if phase is not None:
            self._news.put((key, f"Image {key[0]}: {phase}"))

    def _is_wanted(self, key: _Key) -> bool:
        return any(not job.cancel_seen for job in list(self._waiting.get(key, ())))
