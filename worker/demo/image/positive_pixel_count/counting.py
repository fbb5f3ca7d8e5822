"""Sorts pixels into classes and adds the classes up. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .stain_separation import optical_density, separate, stain_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: The classes in the order of their numbers in a class map.
CLASSES = ("background", "negative", "weak", "positive", "strong")


@dataclass(frozen=True)
class Thresholds:
    """Where one class ends and the next begins, in optical density."""

    tissue: float = 0.06
    weak: float = 0.20
    positive: float = 0.35
    strong: float = 0.60

    def __post_init__(self) -> None:
        """Raises ValueError when the classes would overlap."""
        if not self.tissue >= 0 or not 0 < self.weak < self.positive < self.strong:
            msg = (
                "thresholds must rise: 0 < weak < positive < strong, and tissue must not be negative; got"
                f" tissue {self.tissue}, weak {self.weak}, positive {self.positive}, strong {self.strong}"
            )
            raise ValueError(msg)


@dataclass
class Counts:
    """How many pixels of each class there are, and how much DAB the stained ones hold."""

    pixels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0))
    stained_density: float = 0.0

    def add(self, other: Counts) -> None:
        """Adds another region's counts."""
        for name in CLASSES:
            self.pixels[name] += other.pixels[name]
        self.stained_density += other.stained_density

    @property
    def total(self) -> int:
        """All pixels."""
        return sum(self.pixels.values())

    @property
    def tissue(self) -> int:
        """The pixels that are not background."""
        return self.total - self.pixels["background"]

    @property
    def stained(self) -> int:
        """The pixels that hold DAB: weak, positive and strong."""
        return self.pixels["weak"] + self.pixels["positive"] + self.pixels["strong"]

    @property
    def stained_fraction(self) -> float:
        """Stained among tissue; 0 where there is no tissue."""
        return self.stained / self.tissue if self.tissue else 0.0

    @property
    def mean_stained_density(self) -> float:
        """Mean amount of DAB of the stained pixels; 0 where there are none."""
        return self.stained_density / self.stained if self.stained else 0.0


def classify(pixels: NDArray[Any], thresholds: Thresholds) -> tuple[NDArray[np.uint8], Counts]:
    """The class of each pixel of an RGB region (its number in CLASSES), and their counts."""
    dab = separate(pixels, stain_matrix())[..., 1]
    is_tissue = optical_density(pixels).mean(axis=-1) >= thresholds.tissue
    levels = np.digitize(dab, [thresholds.weak, thresholds.positive, thresholds.strong])
    classes = np.where(is_tissue, levels + 1, 0).astype(np.uint8)
    numbers = np.bincount(classes.ravel(), minlength=len(CLASSES))
    stained = classes >= CLASSES.index("weak")
    counts = Counts(
        pixels={name: int(number) for name, number in zip(CLASSES, numbers, strict=True)},
        stained_density=float(dab[stained].sum()),
    )
    return classes, counts


def tiles(width: int, height: int, edge: int) -> Iterator[tuple[int, int, int, int]]:
    """Left, upper, right and lower edge of squares that cover the picture once, row by row."""
    for upper in range(0, height, edge):
        for left in range(0, width, edge):
            yield left, upper, min(left + edge, width), min(upper + edge, height)
