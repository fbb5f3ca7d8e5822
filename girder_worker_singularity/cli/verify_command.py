"""`girder-singularity verify`: whether SIFs are whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from girder_worker_singularity.cli.answers import NO, Refusal, print_json
from girder_worker_singularity.errors import SifDamaged

if TYPE_CHECKING:
    from pathlib import Path

    from girder_worker_singularity.cli.site import SingularitySite

_VERIFY_SECONDS = 600.0


@click.command("verify", short_help="Check that SIFs are whole.")
@click.argument("image", required=False)
@click.option(
    "--contents",
    is_flag=True,
    help="Also read every file and compare it with the checksum noted when it was made.",
)
@click.option("--signatures", is_flag=True, help="Also have `apptainer verify` check their signatures.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of text.")
@click.pass_context
def verify_command(
    ctx: click.Context, *, image: str | None, contents: bool, signatures: bool, as_json: bool
) -> None:
    """Check that the SIF of an image is whole, or all SIFs of the store without IMAGE.

    Whole means that every part the file promises lies inside it, as Apptainer needs it: a copy or conversion that was
    cut off is found at once. Contents that changed in place are found with --contents, which takes as long as reading
    the files does; those of SIFs that were put there by hand by their signatures only. The exit code is 1 if a file is
    damaged or a signature does not hold.

    \b
    Examples:
      girder-singularity verify
      girder-singularity verify --contents
      girder-singularity verify --signatures team/tool:1
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.cli.site import site_store  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.sif.checksum import contents_problem  # noqa: PLC0415 - likewise

    site = site_store()
    problems = _all(site) if image is None else _one(site, image)
    for path in problems:
        if contents and not problems[path]:
            problems[path] = contents_problem(path)
        if signatures and not problems[path]:
            problems[path] = _signature_problem(site, path)
    if as_json:
        print_json(
            [
                {"path": str(path), "whole": not problem, "problem": problem or None}
                for path, problem in problems.items()
            ]
        )
    else:
        for path, problem in problems.items():
            click.echo(f"{path}: {problem or 'whole'}")
    if any(problems.values()):
        ctx.exit(NO)


def _all(site: SingularitySite) -> dict[Path, str]:
    from girder_worker_singularity.sif.inventory import inventory  # noqa: PLC0415 - the help must come at once

    return {sif.path: sif.damage for sif in inventory(site.root)}


def _one(site: SingularitySite, image: str) -> dict[Path, str]:
    from girder_worker_singularity.image.reference import parse_image_reference  # noqa: PLC0415
    from girder_worker_singularity.sif.inventory import inventory  # noqa: PLC0415

    try:
        sif = site.store.find(image)
    except SifDamaged as error:
        reference = parse_image_reference(image)
        names = (reference.sif_name, reference.unambiguous_sif_name)
        found = {each.path: each.damage for each in inventory(site.root) if each.path.name in names}
        damaged = {path: damage for path, damage in found.items() if damage}
        if not damaged:  # removed or made anew since
            raise Refusal(str(error)) from error
        return damaged
    if sif is None:
        msg = f"There is no SIF of {image} in {site.root}."
        raise Refusal(msg)
    return {sif.path: ""}


def _signature_problem(site: SingularitySite, path: Path) -> str:
    result = site.runner.run(
        (site.apptainer, "verify", "--all", "--local", str(path)), timeout_seconds=_VERIFY_SECONDS
    )
    if result.returncode == 0:
        return ""
    said = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return f"its signatures do not hold: {said[-1] if said else f'exit code {result.returncode}'}"
