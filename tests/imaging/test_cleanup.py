"""What lies apart from the brain, and holes in it."""

from __future__ import annotations

import numpy as np
import pytest

from fedseg.imaging.cleanup import Cleaned, clean

SPACING = (1.0, 2.0, 0.5)


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
    result, changed = clean(labels, SPACING)
    np.testing.assert_array_equal(result, labels)
    assert changed == Cleaned(0, 0)
    result[:] = 0
    np.testing.assert_array_equal(labels, before)


def test_pieces_apart_go_whatever_tissue_they_are_and_are_counted() -> None:
    labels = ball()
    expected = labels.copy()
    labels[0, 0, :3], labels[19, 19, 19] = 1, 2
    result, changed = clean(labels, SPACING)
    np.testing.assert_array_equal(result, expected)
    assert (changed.removed_ml, changed.filled_ml) == pytest.approx((4 * 1e-3, 0))


def test_a_piece_that_touches_by_a_corner_is_apart() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[:3, :3, :3] = 1
    labels[3, 3, 3] = 1
    result, changed = clean(labels, SPACING)
    assert result[3, 3, 3] == 0 and changed.removed_ml == pytest.approx(1e-3)


def test_holes_are_filled_with_the_nearest_tissue_in_millimetres() -> None:
    labels = np.ones((7, 7, 7), np.uint8)
    labels[3, 2, 3] = labels[3, 4, 3] = 2
    labels[2, 3, 3] = labels[4, 3, 3] = 3
    labels[3, 3, 2] = labels[3, 3, 4] = 4
    labels[3, 3, 3] = 0
    for spacing, nearest in (((2, 1, 3), 2), ((1, 2, 3), 3), ((3, 2, 1), 4)):
        result, changed = clean(labels, spacing)
        assert result[3, 3, 3] == nearest
        assert (changed.removed_ml, changed.filled_ml) == pytest.approx((0, 6e-3))


def test_a_hole_open_to_the_outside_is_none_and_pieces_of_a_tissue_may_be_many() -> None:
    labels = ball()
    labels[10, 10, 10:] = 0
    labels[4, 10, 10] = labels[16, 10, 10] = 5
    result, changed = clean(labels, SPACING)
    np.testing.assert_array_equal(result, labels)
    assert changed == Cleaned(0, 0)


def test_a_piece_inside_a_hole_becomes_part_of_the_filling() -> None:
    labels = np.ones((9, 9, 9), np.uint8)
    labels[2:7, 2:7, 2:7] = 0
    labels[4, 4, 4] = 7
    result, changed = clean(labels, (1, 1, 1))
    assert (result == 1).all()
    assert (changed.removed_ml, changed.filled_ml) == pytest.approx((0, 124e-3))


def test_nothing_stays_nothing() -> None:
    result, changed = clean(np.zeros((4, 4, 4), np.uint8), SPACING)
    assert not result.any() and changed == Cleaned(0, 0)
