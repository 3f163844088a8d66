"""Agreement of two masks in voxels: Dice and volume similarity."""

from __future__ import annotations

import numpy as np

from fedseg.metrics.masks import Mask, same_grid


def dice(pred: Mask, ref: Mask) -> float:
    """Dice coefficient `2 TP / (2 TP + FP + FN)`, from 0 to 1 (Dice 1945).

    Args:
        pred: Predicted voxels, (i, j, k), bool.
        ref: Reference voxels, same shape.

    Returns:
        1 where both are empty, 0 where exactly one is.

    Raises:
        DataError: Not two volumes of one shape.
    """
    same_grid(pred, ref)
    voxels = _size(pred) + _size(ref)
    return 2.0 * _size(pred & ref) / voxels if voxels else 1.0


def volume_similarity(pred: Mask, ref: Mask) -> float:
    """Volume similarity `1 - |FN - FP| / (2 TP + FP + FN)`, from 0 to 1 (Taha and Hanbury 2015, as in FeTA).

    It compares sizes only: masks of one size that don't touch have 1.

    Args:
        pred: Predicted voxels, (i, j, k), bool.
        ref: Reference voxels, same shape.

    Returns:
        1 where both are empty, 0 where exactly one is.

    Raises:
        DataError: Not two volumes of one shape.
    """
    same_grid(pred, ref)
    predicted, present = _size(pred), _size(ref)
    return 1.0 - abs(predicted - present) / (predicted + present) if predicted + present else 1.0


def _size(mask: Mask) -> int:
    """Voxels of a mask; numpy gives its own integer for a bool array, which would make the scores numpy's floats."""
    return int(np.count_nonzero(mask))
