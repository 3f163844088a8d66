"""Volumes in millilitres."""

from __future__ import annotations

import math

import numpy as np

from fedseg.metrics.masks import Mask, Spacing, checked_spacing

MM3_PER_ML = 1000.0


def volume_ml(mask: Mask, spacing_mm: Spacing) -> float:
    """Volume of a mask in mL: its voxels times one voxel's volume; 0 for an empty mask.

    Args:
        mask: Voxels, (i, j, k), bool.
        spacing_mm: Voxel edges along the three axes.

    Raises:
        DataError: A spacing that is not positive.
    """
    return int(np.count_nonzero(mask)) * math.prod(checked_spacing(spacing_mm)) / MM3_PER_ML
