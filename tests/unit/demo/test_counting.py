"""Sorting pixels into classes and adding tiles up."""

import pytest

np = pytest.importorskip("numpy")

from worker.demo.image.positive_pixel_count.counting import (  # noqa: E402 - NumPy first
    CLASSES,
    Counts,
    Thresholds,
    classify,
    tiles,
)
from worker.demo.image.positive_pixel_count.stain_separation import DAB, HEMATOXYLIN  # noqa: E402


def pixel(amount, dye):
    """An 8-bit pixel with this amount of a dye."""
    return (255.0 * 10.0 ** (-amount * np.array(dye) / np.linalg.norm(dye))).round().astype(np.uint8)


def test_each_amount_of_dab_falls_into_its_class():
    thresholds = Thresholds(tissue=0.05, weak=0.2, positive=0.4, strong=0.8)
    row = [
        np.array([255, 255, 255], np.uint8),
        pixel(0.7, HEMATOXYLIN),
        pixel(0.3, DAB),
        pixel(0.6, DAB),
        pixel(1.0, DAB),
    ]
    classes, counts = classify(np.array([row]), thresholds)
    assert [CLASSES[number] for number in classes[0]] == list(CLASSES)
    assert counts.pixels == dict.fromkeys(CLASSES, 1)
    assert counts.tissue == 4
    assert counts.stained == 3
    assert counts.stained_fraction == pytest.approx(0.75)
    assert counts.mean_stained_density == pytest.approx((0.3 + 0.6 + 1.0) / 3, abs=0.01)


def test_a_white_picture_has_no_tissue_and_divides_by_nothing():
    _, counts = classify(np.full((3, 3, 3), 255, np.uint8), Thresholds())
    assert (counts.total, counts.tissue, counts.stained) == (9, 0, 0)
    assert counts.stained_fraction == 0.0
    assert counts.mean_stained_density == 0.0


def test_tiles_add_up_to_the_whole_picture():
    picture = np.random.default_rng(3).integers(0, 256, size=(50, 70, 3), dtype=np.uint8)
    whole_classes, whole = classify(picture, Thresholds())
    total = Counts()
    pieced = np.zeros((50, 70), np.uint8)
    for left, upper, right, lower in tiles(70, 50, 16):
        pieced[upper:lower, left:right], counts = classify(picture[upper:lower, left:right], Thresholds())
        total.add(counts)
    assert (pieced == whole_classes).all()
    assert total.pixels == whole.pixels
    assert total.stained_density == pytest.approx(whole.stained_density)


@pytest.mark.parametrize(("width", "height", "edge"), [(1, 1, 1), (7, 5, 3), (6, 6, 3), (2, 9, 100)])
def test_tiles_cover_each_pixel_once(width, height, edge):
    seen = np.zeros((height, width), int)
    for left, upper, right, lower in tiles(width, height, edge):
        seen[upper:lower, left:right] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(
    "wrong", [{"weak": 0.5, "positive": 0.4}, {"weak": 0.0}, {"tissue": -0.1}, {"strong": float("nan")}]
)
def test_thresholds_that_do_not_rise_are_refused(wrong):
    with pytest.raises(ValueError, match="must rise"):
        Thresholds(**wrong)
