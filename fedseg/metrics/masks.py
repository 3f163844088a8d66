"""What every metric asks of its masks and spacing, and the crop that makes them quick."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fedseg.errors import DataError

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]


def same_grid(pred: npt.NDArray[np.generic], ref: npt.NDArray[np.generic]) -> None:
    """DataError unless both arrays are volumes of one shape."""
    if pred.ndim != 3 or pred.shape != ref.shape:
        raise DataError(
            f"prediction and reference are not volumes of one shape: {pred.shape} and {ref.shape}",
            hint="compare them on the scan's own grid",
        )


def checked_spacing(spacing_mm: tuple[float, ...]) -> Spacing:
    """The voxel's edges in mm along the three axes; DataError unless all are positive and finite."""
    edges = tuple(float(edge) for edge in spacing_mm)
    if len(edges) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in edges):
        raise DataError(f"a voxel cannot measure {edges} mm", hint="the header's spacing is broken")
    return edges


def bounding_box(mask: Mask) -> tuple[slice, slice, slice] | None:
    """The smallest box around the mask's voxels; None where there is none."""
    if not mask.any():
        return None
    first, second, third = ndimage.find_objects(np.ascontiguousarray(mask, dtype=np.bool_).view(np.uint8))[0]
    return first, second, third
