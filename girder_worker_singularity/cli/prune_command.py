"""`girder-singularity prune`: removes SIFs that nobody needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from girder_worker_singularity.cli.answers import Unclear, print_json
from girder_worker_singularity.cli.words import size_bytes, size_text
from girder_worker_singularity.errors import ImageReferenceInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from girder_worker_singularity.sif.prune import PruneReport


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else size_bytes(value)
    except ValueError as error:
        msg = f"{value!r} is not a size such as 500M, 20G or 1.5T."
        raise click.BadParameter(msg) from error


@click.command("prune", short_help="Remove SIFs that nobody needs.")
@click.option(
    "--unused-days", type=click.FloatRange(min=0), metavar="N", help="Remove SIFs unused for N days."
)
@click.option(
    "--max-bytes",
    callback=_size,
    metavar="SIZE",
    help="Remove the least recently used SIFs until the rest is not larger than this (500M, 20G, 1.5T).",
)
@click.option(
    "--keep-images",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="Remove the SIFs of images that are not in this file: one image a line, `-` reads stdin.",
)
@click.option(
    "--keep-girder",
    "girders",
    multiple=True,
    metavar="URL",
    help="Remove the SIFs of images that this Girder does not list (any more); may be repeated, where several"
    " share a store, and be given with --keep-images.",
)
@click.option(
    "--girder-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of mode 0600 with an API key of an administrator of these Girders. Without it GIRDER_API_KEY"
    " or GIRDER_TOKEN of the environment.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing, say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def prune_command(
    *,
    unused_days: float | None,
    max_bytes: int | None,
    keep_images: Iterable[str] | None,
    girders: tuple[str, ...],
    girder_key_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove SIFs that nobody needs; the next job that wants such an image has its SIF made again.

    Never removed is one that was used within the last day (workers note every hour which SIFs their jobs run from),
    and one that could not be made again: put there by hand, or made of an archive, a sandbox or an image of the Docker
    engine that is gone. A SIF that was used within the last seven days is only set aside: its space
    is free a week later. What was replaced or left half made long ago goes too; without options, only that.

    \b
    Examples:
      girder-singularity prune --unused-days 90
      girder-singularity prune --max-bytes 200G --dry-run
      girder-singularity prune --keep-images images.txt
      girder-singularity prune --keep-girder https://girder.example.org --girder-key-file ~/.girder-key
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.cli.site import site_store  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.sif.prune import DAY_SECONDS, PruneRules, prune  # noqa: PLC0415

    site = site_store()
    kept = None if keep_images is None else _canonical(keep_images)
    if girders:
        kept = (kept or frozenset()) | _listed(girders, girder_key_file)
    rules = PruneRules(
        unused_seconds=None if unused_days is None else unused_days * DAY_SECONDS,
        most_bytes=max_bytes,
        keep_images=kept,
        archive_dir=site.archive_dir,
    )
    if rules.keep_images is not None and not _knows_any(site.root, rules.keep_images):
        msg = f"None of the images to keep is in {site.root}: that would remove all. Nothing is removed."
        raise Unclear(msg)
    report = prune(site.root, rules, site.clock, dry_run=dry_run)
    if as_json:
        print_json(_as_json(report, dry_run=dry_run))
    else:
        _print(report, dry_run=dry_run)


def _listed(girders: tuple[str, ...], key_file: Path | None) -> frozenset[str]:
    from girder_worker_singularity.source.girder_images import (  # noqa: PLC0415
        GirderAccount,
        account_in,
        girder_images,
    )

    if key_file is not None:
        account = account_in(key_file)
    else:
        account = GirderAccount(os.environ.get("GIRDER_API_KEY", ""), os.environ.get("GIRDER_TOKEN", ""))
    if not account.api_key and not account.token:
        msg = (
            "Girder is asked with an API key: give --girder-key-file, or set GIRDER_API_KEY or GIRDER_TOKEN."
        )
        raise Unclear(msg)
    found: frozenset[str] = frozenset()
    for url in girders:
        images = girder_images(url, account)
        if not images:
            msg = f"{url} lists no images: that would remove all. Nothing is removed."
            raise Unclear(msg)
        found |= images
    return found


def _knows_any(root: Path, images: frozenset[str]) -> bool:
    from girder_worker_singularity.sif.inventory import inventory  # noqa: PLC0415
    from girder_worker_singularity.sif.prune import is_among  # noqa: PLC0415

    sifs = [sif for sif in inventory(root) if sif.reference is not None]
    return not sifs or any(is_among(sif, images) for sif in sifs)


def _canonical(lines: Iterable[str]) -> frozenset[str]:
    from girder_worker_singularity.image.reference import parse_image_reference  # noqa: PLC0415

    found = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        try:
            found |= {parse_image_reference(text).canonical} if text else set()
        except ImageReferenceInvalid as error:
            msg = f"Line {number} of the images to keep: {error}"
            raise Unclear(msg) from error
    if not found:
        msg = "The list of images to keep is empty: that would remove all. Nothing is removed."
        raise Unclear(msg)
    return frozenset(found)


def _as_json(report: PruneReport, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "removed": [
            {
                "path": str(each.sif.path),
                "image": each.sif.image or None,
                "size_bytes": each.sif.size_bytes,
                "why": each.why,
                "at_once": each.at_once,
            }
            for each in report.removed
        ],
        "spared": [{"path": str(each.sif.path), "why": why} for each, why in report.spared],
        "leftovers": [str(path) for path in report.leftovers],
        "freed_bytes": report.freed_bytes,
        "set_aside_bytes": report.set_aside_bytes,
        "left_bytes": report.left_bytes,
        "over_bytes": report.over_bytes,
    }


def _print(report: PruneReport, *, dry_run: bool) -> None:
    for each in report.removed:
        done = "removed" if each.at_once else "set aside"
        verb = f"would be {done}" if dry_run else done
        click.echo(f"{each.sif.path.name}  {size_text(each.sif.size_bytes)}  {verb}: {each.why}")
    for each, why in report.spared:
        click.echo(f"{each.sif.path.name}  {size_text(each.sif.size_bytes)}  left alone: {why}")
    for path in report.leftovers:
        click.echo(f"{path.name}  {'would be removed' if dry_run else 'removed'}: left over")
    later = f", {size_text(report.set_aside_bytes)} within a week" if report.set_aside_bytes else ""
    verb = "would be free" if dry_run else "freed"
    click.echo(f"{size_text(report.freed_bytes)} {verb}{later}; {size_text(report.left_bytes)} of SIFs left.")
    if report.over_bytes:
        click.echo(
            f"That is {size_text(report.over_bytes)} more than wanted: the rest is in use, or could not be made again."
        )
