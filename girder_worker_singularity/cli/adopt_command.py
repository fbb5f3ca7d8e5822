"""`girder-singularity adopt`: says which image a SIF is that somebody put there by hand."""

from __future__ import annotations

import click

from girder_worker_singularity.cli.answers import print_json


@click.command("adopt", short_help="Say which image a SIF is that was put there by hand.")
@click.argument("image")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def adopt_command(*, image: str, as_json: bool) -> None:
    """Note that the SIF that lies in the store under the file name of IMAGE is this image.

    Needed only where two images have one file name, as team/tool:1 and team_tool:1 have: a SIF without a note belongs
    to the image that it is first used as. The file must have the name that IMAGE has as a SIF, and must not have been
    converted by the store.

    \b
    Examples:
      girder-singularity adopt team/tool:1
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.cli.site import site_store  # noqa: PLC0415 - the help must come at once

    path = site_store().store.adopt(image)
    if as_json:
        print_json({"image": image, "path": str(path)})
    else:
        click.echo(f"{path} is {image}.")
