"""What lies apart from the brain, and holes in it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedseg.imaging.cleanup import Cleaned, clean
from fedseg.imaging.grids import Geometry, from_ras, to_ras

SPACING = (1.0, 2.0, 0.5)
ORDERS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


def stored(
    shape: tuple[int, ...],
    spacing: tuple[float, float, float] = SPACING,
    axes: tuple[int, ...] = (0, 1, 2),
    flips: tuple[bool, ...] = (False, False, False),
) -> Geometry:
    """The grid of a label map in an axis order; spacing along its RAS axes."""
    return Geometry(shape, axes, flips, spacing, 1.0, (9, 9, 9), (0, 0, 0), (9, 9, 9))  # type: ignore[arg-type]  # of three


def ball(shape: tuple[int, int, int] = (20, 20, 20), radius: float = 7) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(size) - size / 2 for size in shape], indexing="ij"))
    distance = np.sqrt((grid**2).sum(0))
    labels = np.zeros(shape, np.uint8)
    labels[distance < radius] = 1
    labels[distance < radius - 3] = 2
    return labels


def test_a_brain_in_one_piece_stays_as_it_is() -> None:
    labels = ball()
    before = labels.copy()
    result, changed = clean(labels, stored(labels.shape))
    np.testing.assert_array_equal(result, labels)
    assert changed == Cleaned(0, 0)
    result[:] = 0
    np.testing.assert_array_equal(labels, before)


def test_pieces_apart_go_whatever_tissue_they_are_and_are_counted() -> None:
    labels = ball()
    expected = labels.copy()
    labels[0, 0, :3], labels[19, 19, 19] = 1, 2
    result, changed = clean(labels, stored(labels.shape))
    np.testing.assert_array_equal(result, expected)
    assert (changed.removed_ml, changed.filled_ml) == pytest.approx((4 * 1e-3, 0))


def test_a_piece_that_touches_by_a_corner_is_apart() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[:3, :3, :3] = 1
    labels[3, 3, 3] = 1
    result, changed = clean(labels, stored(labels.shape))
    assert result[3, 3, 3] == 0 and changed.removed_ml == pytest.approx(1e-3)


def test_holes_are_filled_with_the_nearest_tissue_in_millimetres() -> None:
    labels = np.ones((7, 7, 7), np.uint8)
    labels[3, 2, 3] = labels[3, 4, 3] = 2
    labels[2, 3, 3] = labels[4, 3, 3] = 3
    labels[3, 3, 2] = labels[3, 3, 4] = 4
    labels[3, 3, 3] = 0
    for spacing, nearest in (((2, 1, 3), 2), ((1, 2, 3), 3), ((3, 2, 1), 4)):
        result, changed = clean(labels, stored(labels.shape, spacing))
        assert result[3, 3, 3] == nearest
        assert (changed.removed_ml, changed.filled_ml) == pytest.approx((0, 6e-3))


def test_a_hole_open_to_the_outside_is_none_and_pieces_of_a_tissue_may_be_many() -> None:
    labels = ball()
    labels[10, 10, 10:] = 0
    labels[4, 10, 10] = labels[16, 10, 10] = 5
    result, changed = clean(labels, stored(labels.shape))
    np.testing.assert_array_equal(result, labels)
    assert changed == Cleaned(0, 0)


def test_a_piece_inside_a_hole_becomes_part_of_the_filling() -> None:
    labels = np.ones((9, 9, 9), np.uint8)
    labels[2:7, 2:7, 2:7] = 0
    labels[4, 4, 4] = 7
    result, changed = clean(labels, stored(labels.shape, (1, 1, 1)))
    assert (result == 1).all()
    assert (changed.removed_ml, changed.filled_ml) == pytest.approx((0, 124e-3))


def test_nothing_stays_nothing() -> None:
    result, changed = clean(np.zeros((4, 4, 4), np.uint8), stored((4, 4, 4)))
    assert not result.any() and changed == Cleaned(0, 0)


def test_ties_fall_the_same_way_in_all_48_axis_orders() -> None:
    labels = np.ones((9, 11, 13), np.uint8)
    labels[3:6, 3:8, 3:10] = np.random.default_rng(0).integers(0, 6, (3, 5, 7))
    labels[0], labels[0, 0, :2], labels[0, 8, 4:6] = 0, 3, 4
    labels[:, 10], labels[3, 10, 3:5] = 0, 5
    twins = np.zeros((9, 9, 9), np.uint8)
    twins[1:4, 1:4, 1:4], twins[5:8, 5:8, 5:8] = 1, 2
    for ras in (labels, twins):
        expected, changed = clean(ras, stored(ras.shape))
        for axes, flips in ORDERS:
            home = stored(tuple(ras.shape[axes.index(axis)] for axis in range(3)), SPACING, axes, flips)
            found, said = clean(from_ras(ras, home), home)
            np.testing.assert_array_equal(to_ras(found, home), expected)
            assert said == changed
    assert changed.removed_ml == pytest.approx(27e-3)
