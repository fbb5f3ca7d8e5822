"""What is seen of a conversion while it goes on: on stderr, a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def shown_progress(images: int, *, quiet: bool = False) -> Iterator[Callable[[str], Callable[[str], None]]]:
    """A function that begins an image and returns where its lines go; the bar counts the images."""
    from rich.console import Console  # noqa: PLC0415 - the help must come at once
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True, quiet=quiet, soft_wrap=True)
    if not console.is_terminal:
        yield lambda image: lambda line: console.print(f"{image}: {line}", markup=False, highlight=False)
        return
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=images)
        begun = 0

        def begin(image: str) -> Callable[[str], None]:
            nonlocal begun
            progress.update(task, completed=begun, description=escape(image))
            begun += 1
            # Image names and Apptainer's lines are text, not markup.
            return lambda line: progress.update(task, description=escape(f"{image}: {line.strip()[:100]}"))

        yield begin
