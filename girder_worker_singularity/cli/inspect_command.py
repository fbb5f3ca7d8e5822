"""`girder-singularity inspect`: what a SIF says about itself."""

from __future__ import annotations

import shlex
from typing import Any

import click

from girder_worker_singularity.cli.answers import Refusal, print_json
from girder_worker_singularity.cli.words import size_text


@click.command("inspect", short_help="Show how an image is started.")
@click.argument("image")
@click.option(
    "--definition", "with_definition", is_flag=True, help="Also the definition file the SIF was built by."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text; always with the definition.")
def inspect_command(*, image: str, with_definition: bool, as_json: bool) -> None:
    """Show what is used of an image whose SIF is there: entrypoint, command, environment, working directory, labels.

    Read from the SIF itself; nothing is started and no registry is asked.

    \b
    Examples:
      girder-singularity inspect dsarchive/histomicstk:latest
      girder-singularity inspect --json team/tool:1
    """  # noqa: D301 - click wants the character
    from girder_worker_singularity.cli.site import site_store  # noqa: PLC0415 - the help must come at once
    from girder_worker_singularity.sif.file import read_sif  # noqa: PLC0415

    store = site_store().store
    sif = store.find(image)
    if sif is None:
        msg = f"There is no SIF of {image} in {store.root} (`girder-singularity pull` makes it)."
        raise Refusal(msg)
    contents, config = read_sif(sif.path), sif.config
    facts: dict[str, Any] = {
        "image": image,
        "path": str(sif.path),
        "digest": sif.digest,
        "size_bytes": contents.size_bytes,
        "architecture": contents.architecture,
        "entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "command": list(config.command),
        "environment": list(config.environment),
        "working_dir": config.working_dir,
        "labels": dict(config.labels),
        "needs_nvidia": config.needs_nvidia,
        "definition": contents.definition,
    }
    if as_json:
        print_json(facts)
        return
    entrypoint = "its own runscript" if config.entrypoint is None else shlex.join(config.entrypoint)
    lines = [
        ("image", image),
        ("path", str(sif.path)),
        ("digest", sif.digest or "not known"),
        ("size", size_text(contents.size_bytes)),
        ("architecture", contents.architecture),
        ("entrypoint", entrypoint or "none"),
        ("command", shlex.join(config.command) or "none"),
        ("working dir", config.working_dir),
        ("GPU", "yes" if config.needs_nvidia else "not asked for"),
        *(("environment", pair) for pair in config.environment),
        *(("label", f"{name}={value}") for name, value in config.labels.items()),
    ]
    for name, value in lines:
        click.echo(f"{name + ':':<14}{value}")
    if with_definition:
        click.echo(f"definition:\n{contents.definition}")
