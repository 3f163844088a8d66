"""Pieces apart from the brain taken away, holes in it filled: in plain sight, with how much was changed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.imaging.grids import Geometry, from_ras, to_ras

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Cleaned:
    """What a clean-up changed.

    Args:
        removed_ml: Volume of the pieces that were taken away, in mL.
        filled_ml: Volume of the holes that were filled, in mL.
    """

    removed_ml: float
    filled_ml: float


def clean(labels: NDArray[np.uint8], geometry: Geometry) -> tuple[NDArray[np.uint8], Cleaned]:
    """Keep the largest connected piece of all tissues together, and fill the holes in it with the nearest tissue.

    A piece hangs together by faces (6 neighbours); a hole is background that no path through faces leads out of. What
    lies apart inside a hole becomes part of the filling. No single tissue is touched: the external CSF of a brain is
    often in several pieces. It works in RAS: of two pieces of one size, or two tissues equally near, the same one wins
    in whatever axis order the scan is stored.

    Args:
        labels: uint8 [i, j, k] on the input's grid; 0 is background. Not changed.
        geometry: Where that grid's axes run, and its voxel size.

    Returns:
        The label map, and what was changed; an empty label map stays as it is.
    """
    ras = to_ras(labels, geometry)
    pieces, count = ndimage.label(ras > 0)
    if count == 0:
        return labels.copy(), Cleaned(0.0, 0.0)
    kept = pieces == 1 + int(np.bincount(pieces.reshape(-1))[1:].argmax())
    filled = np.asarray(ndimage.binary_fill_holes(kept), dtype=np.bool_)
    result = np.where(kept, ras, np.uint8(0))
    holes = filled & ~kept
    if holes.any():
        result[holes] = _nearest(result, holes, geometry.spacing_mm)
    voxel_ml = math.prod(geometry.spacing_mm) / MM3_PER_ML
    removed, added = (ras > 0) & ~filled, holes & (ras == 0)
    cleaned = Cleaned(int(removed.sum()) * voxel_ml, int(added.sum()) * voxel_ml)
    return from_ras(result, geometry), cleaned


def _nearest(
    labels: NDArray[np.uint8], where: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The label nearest to each voxel of a mask, in millimetres; looked for around the mask's bounding box only."""
    box = ndimage.find_objects(where.astype(np.uint8))[0]
    near = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    inside, asked = labels[near], where[near]
    _, indices = ndimage.distance_transform_edt(inside == 0, sampling=spacing_mm, return_indices=True)
    return np.asarray(inside[tuple(axis[asked] for axis in indices)], dtype=np.uint8)
