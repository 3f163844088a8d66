from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from fedseg.errors import DataError
from fedseg.metrics.overlap import dice, volume_similarity
from tests.metrics.shapes import Mask, pairs

EMPTY = np.zeros((3, 3, 3), dtype=np.bool_)
FULL = np.ones((3, 3, 3), dtype=np.bool_)


def _counts(pred: Mask, ref: Mask) -> tuple[int, int, int]:
    both = list(zip(pred.ravel().tolist(), ref.ravel().tolist(), strict=True))
    return (
        sum(p and r for p, r in both),
        sum(p and not r for p, r in both),
        sum(r and not p for p, r in both),
    )


@given(pairs())
def test_as_counted_one_voxel_at_a_time(masks: tuple[Mask, Mask]) -> None:
    true_positive, false_positive, false_negative = _counts(*masks)
    denominator = 2 * true_positive + false_positive + false_negative
    if denominator:
        assert dice(*masks) == pytest.approx(2 * true_positive / denominator)
        expected = 1 - abs(false_negative - false_positive) / denominator
        assert volume_similarity(*masks) == pytest.approx(expected)
    else:
        assert dice(*masks) == volume_similarity(*masks) == 1.0


@pytest.mark.parametrize("metric", [dice, volume_similarity])
def test_empty_masks(metric) -> None:  # type: ignore[no-untyped-def]
    assert metric(EMPTY, EMPTY) == 1.0
    assert metric(EMPTY, FULL) == 0.0
    assert metric(FULL, EMPTY) == 0.0
    assert type(metric(FULL, FULL)) is float


def test_volume_similarity_ignores_place() -> None:
    left, right = EMPTY.copy(), EMPTY.copy()
    left[0], right[2] = True, True
    assert volume_similarity(left, right) == 1.0
    assert dice(left, right) == 0.0


@pytest.mark.parametrize("other", [(3, 3, 4), (3, 3)])
def test_shapes_that_differ_are_named(other: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"not volumes of one shape: \(3, 3, 3\) and \(3, 3"):
        dice(FULL, np.ones(other, dtype=np.bool_))
