"""The command line of PositivePixelCount, as its XML describes it."""

# ruff: noqa: T201, TID251 - a program in an image: it prints its progress, and shares no clock with the worker

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from .counting import CLASSES, Counts, Thresholds, classify, tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NAME = "PositivePixelCount"

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_COLOURS = {"weak": (255, 230, 0), "positive": (255, 140, 0), "strong": (220, 0, 30)}
_PROGRESS_SECONDS = 0.2
#: How much of the work is done when all tiles are counted; the rest is writing the picture.
_COUNTING_SHARE = 0.9
_MOST_ENLARGED = 16


class PictureUnusable(Exception):
    """The input is not a picture that this analysis can count in."""


def main(arguments: Sequence[str]) -> int:
    """Runs the analysis; the answer is the exit code: 0 done, 1 the input or the disk, 2 the parameters."""
    options = _parser().parse_args(arguments)
    try:
        thresholds = Thresholds(options.tissue, options.weak, options.positive, options.strong)
    except ValueError as error:
        return _fail(str(error), code=2)
    if options.tile < 1:
        return _fail(f"the tile size must be at least 1 pixel, not {options.tile}", code=2)
    if not 1 <= options.enlarge <= _MOST_ENLARGED:
        return _fail(f"a picture can be enlarged 1 to {_MOST_ENLARGED} times, not {options.enlarge}", code=2)
    try:
        _analyse(options, thresholds)
    except PictureUnusable as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    return 0


def read_picture(path: Path) -> Image.Image:
    """The picture in RGB, transparency on white. Raises PictureUnusable saying what is wrong with it."""
    try:
        with warnings.catch_warnings():
            # Large pictures are what pathology is about; only Pillow's hard limit counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
            picture.load()
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        msg = f"{path.name} is not a picture that can be read here: use a PNG, JPEG or plain TIFF"
        raise PictureUnusable(msg) from error
    except Image.DecompressionBombError as error:
        msg = f"{path.name} has too many pixels to be read at once: cut out a region first"
        raise PictureUnusable(msg) from error
    except OSError as error:
        if error.errno is not None:
            raise
        msg = f"{path.name} is damaged: {error}"
        raise PictureUnusable(msg) from error
    if picture.mode not in _EIGHT_BIT_MODES:
        msg = f"{path.name} has pixels of kind {picture.mode}: an 8-bit colour picture is needed"
        raise PictureUnusable(msg)
    if picture.mode in {"LA", "PA", "RGBA"} or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return picture.convert("RGB")


def _analyse(options: argparse.Namespace, thresholds: Thresholds) -> None:
    started = time.monotonic()
    picture = read_picture(options.inputImage)
    print(f"{options.inputImage.name}: {picture.width} x {picture.height} pixels", flush=True)
    if options.enlarge > 1:
        size = (picture.width * options.enlarge, picture.height * options.enlarge)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        print(f"enlarged to {picture.width} x {picture.height}", flush=True)
    _tag("filter-start", f"<filter-name>{NAME}</filter-name><filter-comment>Counting</filter-comment>")
    counts = Counts()
    marked = Image.new("RGB", picture.size)
    squares = list(tiles(picture.width, picture.height, options.tile))
    told = 0.0
    for number, square in enumerate(squares, start=1):
        pixels = np.asarray(picture.crop(square))
        classes, found = classify(pixels, thresholds)
        counts.add(found)
        marked.paste(Image.fromarray(mark(pixels, classes)), square)
        now = time.monotonic()
        if now - told >= _PROGRESS_SECONDS:
            told = now
            _tag("filter-progress", f"{_COUNTING_SHARE * number / len(squares):.3f}")
    marked.save(options.outputImage, format="PNG")
    options.outputCounts.write_text(
        json.dumps(summary(counts, thresholds), indent=2) + "\n", encoding="utf-8"
    )
    if options.returnparameterfile is not None:
        options.returnparameterfile.write_text(
            f"stainedFraction = {counts.stained_fraction:.6f}\nstainedPixels = {counts.stained}\n",
            encoding="utf-8",
        )
    _tag("filter-progress", "1.000")
    _tag("filter-end", f"<filter-name>{NAME}</filter-name>")
    print(f"{len(squares)} tiles in {time.monotonic() - started:.2f} s")
    print(
        f"{counts.stained} of {counts.tissue} tissue pixels are stained: {counts.stained_fraction:.1%}",
        flush=True,
    )


def mark(pixels: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels in grey, the stained ones in the colours of their classes."""
    grey = pixels.mean(axis=-1, keepdims=True) * 0.6 + 90.0
    marked = np.broadcast_to(grey, pixels.shape).astype(np.uint8)
    for name, colour in _COLOURS.items():
        marked[classes == CLASSES.index(name)] = colour
    return marked


def summary(counts: Counts, thresholds: Thresholds) -> dict[str, object]:
    """What goes into the file of counts."""
    return {
        "pixels": {"total": counts.total, "tissue": counts.tissue, **counts.pixels},
        "stainedPixels": counts.stained,
        "stainedFraction": round(counts.stained_fraction, 6),
        "meanStainedDensity": round(counts.mean_stained_density, 6),
        "thresholds": vars(thresholds),
    }


def _parser() -> argparse.ArgumentParser:
    defaults = Thresholds()
    parser = argparse.ArgumentParser(prog=NAME, description="Counts stained pixels of a tissue section.")
    parser.add_argument("inputImage", type=Path)
    parser.add_argument("outputImage", type=Path)
    parser.add_argument("outputCounts", type=Path)
    parser.add_argument("--tissue", type=float, default=defaults.tissue)
    parser.add_argument("--weak", type=float, default=defaults.weak)
    parser.add_argument("--positive", type=float, default=defaults.positive)
    parser.add_argument("--strong", type=float, default=defaults.strong)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--enlarge", type=int, default=1)
    parser.add_argument("--returnparameterfile", type=Path)
    return parser


def _tag(name: str, content: str) -> None:
    """One line that Slicer and Girder understand as progress."""
    print(f"<{name}>{content}</{name}>", flush=True)


def _fail(sentence: str, *, code: int = 1) -> int:
    print(f"{NAME}: {sentence}.", file=sys.stderr)
    return code
