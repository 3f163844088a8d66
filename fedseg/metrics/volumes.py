"""Volumes in millilitres."""

from __future__ import annotations

import math

import numpy as np

from fedseg.errors import DataError
from fedseg.metrics.masks import Mask

MM3_PER_ML = 1000.0


def volume_ml(mask: Mask, voxel_mm3: float) -> float:
    """Volume of a mask in mL: its voxels times one voxel's volume; 0 for an empty mask.

    Args:
        mask: Voxels, (i, j, k), bool.
        voxel_mm3: Volume of a voxel: the product of its edges only where these are at right angles.

    Raises:
        DataError: A volume that is not positive.
    """
    if not (math.isfinite(voxel_mm3) and voxel_mm3 > 0):
        raise DataError(f"a voxel of {voxel_mm3:g} mm3 has no volume")
    return int(np.count_nonzero(mask)) * voxel_mm3 / MM3_PER_ML
