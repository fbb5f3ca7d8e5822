"""How much of each dye is in each pixel: the colour deconvolution of Ruifrok and Johnston (2001).

A dye takes light away by the law of Lambert and Beer: the logarithm of what is left falls in proportion to the
dye's amount, with one slope per colour channel. These three slopes are the dye's vector. A pixel's optical
densities are the sum of the vectors, each times the amount of its dye; solving for the amounts separates the dyes.
Knows nothing of files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Red, green and blue absorption of one unit of the dye, as published for light microscopy.
HEMATOXYLIN = (0.65, 0.70, 0.29)
DAB = (0.27, 0.57, 0.78)

_WHITE = 255.0


def optical_density(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Optical densities of 8-bit pixels, whatever their arrangement; 0 is white.

    The darkest value counts as 1, because black has no finite density.
    """
    return -np.log10(np.maximum(np.asarray(pixels, dtype=np.float64), 1.0) / _WHITE)


def stain_matrix(
    first: tuple[float, float, float] = HEMATOXYLIN, second: tuple[float, float, float] = DAB
) -> NDArray[np.float64]:
    """Three rows of length 1: both dyes, and the direction that neither of them can make.

    Raises ValueError for dyes of the same colour, which nothing can separate.
    """
    rows = [np.asarray(vector, dtype=np.float64) for vector in (first, second)]
    if any(not np.linalg.norm(row) > 0 for row in rows):
        msg = "a dye needs at least one channel that it absorbs"
        raise ValueError(msg)
    rows = [row / np.linalg.norm(row) for row in rows]
    residual = np.cross(rows[0], rows[1])
    length = np.linalg.norm(residual)
    if length < 1e-3:
        msg = "the two dyes have the same colour and cannot be separated"
        raise ValueError(msg)
    return np.array([*rows, residual / length])


def separate(pixels: NDArray[Any], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Amounts of the first dye, the second dye and the rest, in the last axis of RGB pixels."""
    amounts: NDArray[np.float64] = optical_density(pixels) @ np.linalg.inv(matrix)
    return amounts
