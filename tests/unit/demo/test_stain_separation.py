"""The numerics of the demonstration's analysis: what is mixed is separated again."""

import math

import pytest

np = pytest.importorskip("numpy")

from worker.demo.image.positive_pixel_count.stain_separation import (  # noqa: E402 - NumPy first
    DAB,
    HEMATOXYLIN,
    optical_density,
    separate,
    stain_matrix,
)


def transmitted(*amounts_and_dyes):
    """The RGB light, 0 to 255 and not rounded, that these amounts of dyes let through."""
    density = sum(amount * np.array(dye) / np.linalg.norm(dye) for amount, dye in amounts_and_dyes)
    return 255.0 * 10.0**-density


def test_white_has_no_density_and_a_tenth_of_the_light_has_density_one():
    assert optical_density(np.array([255, 25.5])) == pytest.approx([0.0, 1.0])


def test_black_has_a_finite_density():
    assert optical_density(np.array([0, 1])) == pytest.approx([math.log10(255)] * 2)


def test_the_rows_of_the_matrix_have_length_one_and_the_residual_is_at_right_angles():
    matrix = stain_matrix()
    assert np.linalg.norm(matrix, axis=1) == pytest.approx([1, 1, 1])
    assert matrix[2] @ matrix[0] == pytest.approx(0)
    assert matrix[2] @ matrix[1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("hematoxylin", "dab"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.9), (0.4, 0.3), (1.2, 0.05)]
)
def test_a_mixture_of_both_dyes_is_separated_into_their_amounts(hematoxylin, dab):
    pixel = transmitted((hematoxylin, HEMATOXYLIN), (dab, DAB))
    assert separate(pixel, stain_matrix()) == pytest.approx([hematoxylin, dab, 0.0], abs=1e-12)


def test_eight_bits_are_enough_for_a_hundredth_of_density():
    rng = np.random.default_rng(1)
    amounts = rng.uniform(0.1, 0.6, size=(200, 2))
    pixels = np.array([transmitted((h, HEMATOXYLIN), (d, DAB)) for h, d in amounts]).round().astype(np.uint8)
    assert separate(pixels, stain_matrix())[:, :2] == pytest.approx(amounts, abs=0.02)


def test_each_pixel_is_separated_by_itself_whatever_the_shape():
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
    whole = separate(picture, stain_matrix())
    assert whole.shape == (5, 7, 3)
    assert whole[3, 4] == pytest.approx(separate(picture[3, 4], stain_matrix()))


@pytest.mark.parametrize("second", [HEMATOXYLIN, (1.3, 1.4, 0.58)])
def test_dyes_of_one_colour_are_refused(second):
    with pytest.raises(ValueError, match="same colour"):
        stain_matrix(HEMATOXYLIN, second)


def test_a_dye_without_colour_is_refused():
    with pytest.raises(ValueError, match="absorbs"):
        stain_matrix((0.0, 0.0, 0.0), DAB)
