"""What is seen of a conversion while it goes on: on stderr, a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from girder_worker_singularity.sif.progress import transfer_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console


@contextlib.contextmanager
def shown_progress(images: int, *, quiet: bool = False) -> Iterator[Callable[[str], Callable[[str], None]]]:
    """A function that begins an image and returns where its lines go; the bar shows the bytes of that image."""
    from rich.console import Console  # noqa: PLC0415 - the help must come at once
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True, quiet=quiet, soft_wrap=True)
    if not console.is_terminal:
        yield lambda image: lambda line: _print(console, image, line)
        return
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.fields[images]}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("", total=None, images="")
        (bar,) = progress.tasks
        begun = 0

        def begin(image: str) -> Callable[[str], None]:
            nonlocal begun
            begun += 1
            # Image names and Apptainer's lines are text, not markup.
            progress.update(
                bar.id,
                description=escape(image),
                images=f"{begun} of {images}" if images > 1 else "",
            )
            return lambda line: show(image, line)

        def show(image: str, line: str) -> None:
            transfer = transfer_in(line)
            said = transfer.text if transfer is not None else line.strip()[:100]
            # `update` takes no total back; without one the bar only moves to and fro.
            bar.total = float(transfer.total) if transfer is not None and transfer.total else None
            done = transfer.done if transfer is not None else 0
            progress.update(bar.id, completed=done, description=escape(f"{image}: {said}"))

        yield begin


def _print(console: Console, image: str, line: str) -> None:
    if transfer_in(line) is None:  # bytes are for who watches, not for a log
        console.print(f"{image}: {line}", markup=False, highlight=False)
