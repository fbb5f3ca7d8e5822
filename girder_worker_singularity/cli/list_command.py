"""`girder-singularity list`: which SIFs there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from girder_worker_singularity.cli.answers import print_json
from girder_worker_singularity.cli.words import ago_text, iso_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from girder_worker_singularity.sif.inventory import StoredSif


@click.command("list", short_help="List the SIFs.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of a table.")
def list_command(*, as_json: bool) -> None:
    """List the SIFs of the store: file, image, size, when made, when last used by a job, where from, digest.

    A file that is not a whole SIF is marked as damaged; the next job that wants its image has it made again.
    `put there by hand` means that no store made it: it is never removed by `prune`.

    \b
    Examples:
      girder-singularity list
      girder-singularity list --json
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.cli.site import site_store  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.sif.inventory import inventory  # noqa: PLC0415

    site = site_store()
    sifs = inventory(site.root)
    if as_json:
        print_json([_as_json(sif) for sif in sifs])
    elif sifs:
        _print_table(sifs, site.clock.now())
        click.echo(f"{len(sifs)} SIFs, {size_text(sum(sif.size_bytes for sif in sifs))} in {site.root}")
    else:
        click.echo(f"No SIFs in {site.root}.")


def _as_json(sif: StoredSif) -> dict[str, Any]:
    return {
        "name": sif.path.name,
        "path": str(sif.path),
        "image": sif.image or None,
        "size_bytes": sif.size_bytes,
        "made_at": iso_text(sif.made_at),
        "last_used_at": iso_text(sif.last_used_at),
        "source": sif.source,
        "digest": sif.digest,
        "damage": sif.damage or None,
    }


def _print_table(sifs: Sequence[StoredSif], now: float) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "image", "size", "made", "used", "source", "digest"):
        table.add_column(
            name, no_wrap=True, overflow="ellipsis", justify="right" if name == "size" else "left"
        )
    for sif in sifs:
        cells = (
            sif.path.name,
            sif.image or "?",
            size_text(sif.size_bytes),
            ago_text(sif.made_at, now),
            ago_text(sif.last_used_at, now),
            f"DAMAGED ({sif.source})" if sif.damage else sif.source,
            (sif.digest or "")[:19],
        )
        table.add_row(*(Text(cell) for cell in cells))
    console = Console(soft_wrap=False)
    # For grep and less: no line is cut at 80 columns.
    (console if console.is_terminal else Console(width=400)).print(table)
