#!/usr/bin/python3
"""The image's entry point, as Slicer CLI images have it: `--list_cli`, `CLI --xml`, `CLI ARGUMENTS`.

The entry point of the image is `./entrypoint.py`, relative to its working directory, and so are the files it reads.
"""

import sys
from pathlib import Path

CLI = "PositivePixelCount"
USAGE = f"usage: --list_cli | {CLI} --xml | {CLI} ARGUMENTS (see {CLI} --help)"


def main(arguments: list[str]) -> int:
    """The exit code."""
    if arguments == ["--list_cli"]:
        sys.stdout.write(f'{{"{CLI}": {{"type": "python"}}}}\n')
        return 0
    if not arguments or arguments[0] != CLI:
        sys.stderr.write(f"{USAGE}\n")
        return 2
    if "--xml" in arguments[1:]:
        sys.stdout.write(Path(f"{CLI}.xml").read_text(encoding="utf-8"))
        return 0
    # In the image the package lies beside this file. The questions above need no NumPy.
    from positive_pixel_count import cli  # type: ignore[import-not-found]  # noqa: PLC0415

    code: int = cli.main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
