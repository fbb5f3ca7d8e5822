"""`girder-singularity pull`: has SIFs made."""

from __future__ import annotations

from typing import Any, get_args

import click

from girder_worker_singularity.cli.answers import NO, in_one_line, print_json
from girder_worker_singularity.cli.ending import tidied_up
from girder_worker_singularity.errors import ContainerError
from girder_worker_singularity.sif.store import Policy


@click.command("pull", short_help="Make the SIF of an image.")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--policy",
    type=click.Choice(get_args(Policy)),
    default="always",
    show_default=True,
    help="When to convert: `always` asks the registry and converts only what has changed there.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of text.")
@click.pass_context
def pull_command(ctx: click.Context, *, images: tuple[str, ...], policy: Policy, as_json: bool) -> None:
    """Make the SIFs of these images, or bring them up to date, before a job wants them.

    Whoever else wants the same image meanwhile waits for the same conversion. One that fails leaves the present SIF in
    use, and does not keep the other images from being made; the exit code is 1 then.

    \b
    Examples:
      girder-singularity pull dsarchive/histomicstk:latest
      girder-singularity pull --policy if-not-present team/tool:1 team/tool:2
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.cli.progress import shown_progress  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.cli.site import site_store  # noqa: PLC0415
    from girder_worker_singularity.cli.words import size_text  # noqa: PLC0415

    store = site_store().store
    answers: list[dict[str, Any]] = []
    with tidied_up(), shown_progress(len(images)) as begin:
        for image in images:
            try:
                sif = store.ensure(image, policy=policy, on_progress=begin(image))
            except ContainerError as error:
                answers.append({"image": image, "error": in_one_line(str(error))})
            else:
                answers.append(
                    {
                        "image": image,
                        "sif": str(sif.path),
                        "size_bytes": sif.path.stat().st_size,
                        "digest": sif.digest,
                        "converted": sif.converted,
                    }
                )
    if as_json:
        print_json(answers)
    for answer in () if as_json else answers:
        if "error" in answer:
            click.echo(f"girder-singularity: {answer['image']}: {answer['error']}", err=True)
        else:
            what = "converted" if answer["converted"] else "up to date" if policy != "never" else "there"
            click.echo(f"{answer['sif']}  {size_text(answer['size_bytes'])}  {what}")
    if any("error" in answer for answer in answers):
        ctx.exit(NO)
